--
-- PostgreSQL database cluster dump
--

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE bob;
ALTER ROLE bob WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;






--
-- Database creation
--

CREATE DATABASE old WITH TEMPLATE = template0 OWNER = bob;
REVOKE CONNECT,TEMPORARY ON DATABASE template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE template1 TO PUBLIC;


\connect old

SET default_transaction_read_only = off;

--
-- PostgreSQL database dump
--

-- Dumped from database version 9.6.24
-- Dumped by pg_dump version 9.6.24

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: plperl; Type: PROCEDURAL LANGUAGE; Schema: -; Owner: bob
--

CREATE OR REPLACE PROCEDURAL LANGUAGE plperl;


ALTER PROCEDURAL LANGUAGE plperl OWNER TO bob;

--
-- Name: f(integer); Type: FUNCTION; Schema: public; Owner: bob
--

CREATE FUNCTION public.f(integer) RETURNS integer
    LANGUAGE plperl
    AS $_$return $_[0] . ';';$_$;


SET default_tablespace = '';

SET default_with_oids = true;

--
-- Name: t; Type: TABLE; Schema: public; Owner: bob
--

CREATE TABLE public.t (
    a integer,
    b text
);


ALTER TABLE public.t OWNER TO bob;

SET default_with_oids = false;

--
-- Name: u; Type: TABLE; Schema: public; Owner: bob
--

CREATE TABLE public.u (
    a integer
);


--
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: bob
--

COPY public.t (a, b) WITH OIDS FROM stdin;
16390	1	x;
16391	2	\N
\.


--
-- Data for Name: u; Type: TABLE DATA; Schema: public; Owner: bob
--

COPY public.u (a) FROM stdin;
\.


--
-- Name: SCHEMA public; Type: ACL; Schema: -; Owner: postgres
--

REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM postgres;
GRANT ALL ON SCHEMA public TO postgres;
GRANT ALL ON SCHEMA public TO PUBLIC;


--
-- PostgreSQL database dump complete
--

--
-- PostgreSQL database cluster dump complete
--

