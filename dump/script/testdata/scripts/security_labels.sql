--
-- PostgreSQL database cluster dump
--

\restrict ourKey1

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE reader;
ALTER ROLE reader WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;
SECURITY LABEL FOR dummy ON ROLE reader IS 'it''s; \ secret';
CREATE ROLE "odd ;""role";
ALTER ROLE "odd ;""role" WITH LOGIN;
SECURITY LABEL FOR "odd ;""provider" ON ROLE "odd ;""role" IS 'classified';

--
-- Tablespaces
--

CREATE TABLESPACE fast OWNER reader LOCATION '/fast';
SECURITY LABEL FOR dummy ON TABLESPACE fast IS 'unclassified';

\unrestrict ourKey1

\connect template1

--
-- PostgreSQL database dump
--

--
-- PostgreSQL database dump complete
--

--
-- Database "labels" dump
--

--
-- PostgreSQL database dump
--

\restrict ourKey2

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Name: labels; Type: DATABASE; Schema: -; Owner: reader
--

CREATE DATABASE labels WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE_PROVIDER = libc LOCALE = 'C';


ALTER DATABASE labels OWNER TO reader;

\unrestrict ourKey2
\connect labels
\restrict ourKey2

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Name: DATABASE labels; Type: SECURITY LABEL; Schema: -; Owner: reader
--

SECURITY LABEL FOR dummy ON DATABASE labels IS 'top; secret';


CREATE SCHEMA app;

SECURITY LABEL FOR dummy ON SCHEMA app IS 'classified';

CREATE TYPE app.mood AS ENUM (
    'sad'
);

SECURITY LABEL FOR dummy ON TYPE app.mood IS 'classified';

CREATE DOMAIN app.word AS text;

SECURITY LABEL FOR dummy ON DOMAIN app.word IS 'classified';

CREATE FUNCTION app.f(integer, text) RETURNS integer
    LANGUAGE sql
    AS $$SECURITY LABEL ON TABLE app.t IS 'x';$$;

SECURITY LABEL FOR dummy ON FUNCTION app.f(integer, text) IS E'back\\slash; ''';

CREATE AGGREGATE app.total(integer) (
    SFUNC = int4pl,
    STYPE = integer
);

SECURITY LABEL FOR dummy ON AGGREGATE app.total(integer) IS 'classified';

CREATE TABLE app.t (
    a integer,
    "odd ;""column" text
);

--
-- Name: TABLE t; Type: SECURITY LABEL; Schema: app; Owner: reader
--

SECURITY LABEL FOR dummy ON TABLE app.t IS 'secret
COPY app.t FROM stdin;
\.
';
SECURITY LABEL FOR "odd ;""provider" ON TABLE app.t IS 'unclassified';


--
-- Name: COLUMN t."odd ;""column"; Type: SECURITY LABEL; Schema: app; Owner: reader
--

SECURITY LABEL FOR dummy ON COLUMN app.t."odd ;""column" IS 'classified';


CREATE TABLE app.u (
    a integer
);

SECURITY LABEL FOR dummy ON TABLE app.u IS 'other';
SECURITY LABEL FOR dummy ON COLUMN app.u.a IS 'other';

CREATE SEQUENCE app.s;

ALTER SEQUENCE app.s OWNED BY app.t.a;

SECURITY LABEL FOR dummy ON SEQUENCE app.s IS 'of t';

CREATE SEQUENCE app.r;

ALTER SEQUENCE app.r OWNED BY app.u.a;

SECURITY LABEL FOR dummy ON SEQUENCE app.r IS 'other';

CREATE VIEW app.v AS
 SELECT a FROM app.u;

SECURITY LABEL FOR dummy ON VIEW app.v IS 'other';

CREATE MATERIALIZED VIEW app.m AS
 SELECT a FROM app.u
  WITH NO DATA;

SECURITY LABEL FOR dummy ON MATERIALIZED VIEW app.m IS 'other';

CREATE FOREIGN TABLE app.ft (
    a integer
)
SERVER srv;

SECURITY LABEL FOR dummy ON FOREIGN TABLE app.ft IS 'other';

CREATE PUBLICATION pub FOR ALL TABLES;

SECURITY LABEL FOR dummy ON PUBLICATION pub IS 'other';

CREATE SUBSCRIPTION sub CONNECTION 'host=nowhere' PUBLICATION pub WITH (connect = false, slot_name = 'sub');

SECURITY LABEL FOR dummy ON SUBSCRIPTION sub IS 'other';

CREATE EVENT TRIGGER watch ON ddl_command_end
   EXECUTE FUNCTION app.w();

SECURITY LABEL FOR dummy ON EVENT TRIGGER watch IS 'other';

SECURITY LABEL FOR dummy ON LANGUAGE plpgsql IS 'classified';

SELECT pg_catalog.lo_create('1000');

SECURITY LABEL FOR dummy ON LARGE OBJECT 1000 IS 'other';

--
-- Data for Name: t; Type: TABLE DATA; Schema: app; Owner: reader
--

COPY app.t (a, "odd ;""column") FROM stdin;
1	SECURITY LABEL FOR dummy ON TABLE app.t IS 'x';
\.


--
-- PostgreSQL database dump complete
--

\unrestrict ourKey2

--
-- PostgreSQL database cluster dump complete
--

