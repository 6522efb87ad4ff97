--
-- PostgreSQL database dump
--

-- Dumped from database version 17.5
-- Dumped by pg_dump version 17.5

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: app; Type: SCHEMA; Schema: -; Owner: writer
--

CREATE SCHEMA app;


ALTER SCHEMA app OWNER TO writer;

--
-- Name: mood; Type: TYPE; Schema: app; Owner: postgres
--

CREATE TYPE app.mood AS ENUM (
    'sad',
    'o''k',
    'happy; very'
);


ALTER TYPE app.mood OWNER TO postgres;

--
-- Name: percent; Type: DOMAIN; Schema: app; Owner: postgres
--

CREATE DOMAIN app.percent AS numeric(5,2) NOT NULL
	CONSTRAINT sane CHECK ((VALUE >= (0)::numeric));


ALTER DOMAIN app.percent OWNER TO postgres;

--
-- Name: begins(integer); Type: FUNCTION; Schema: app; Owner: postgres
--

CREATE FUNCTION app.begins(n integer) RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT
         CASE
             WHEN (n > 0) THEN
             CASE n
                 WHEN 1 THEN 2
                 ELSE 3
             END
             ELSE 4
         END AS "case";
 SELECT (n + 1) AS "end";
END;


ALTER FUNCTION app.begins(n integer) OWNER TO postgres;

--
-- Name: touch(); Type: FUNCTION; Schema: app; Owner: postgres
--

CREATE FUNCTION app.touch() RETURNS trigger
    LANGUAGE plpgsql
    AS $$BEGIN RETURN NEW; END$$;


ALTER FUNCTION app.touch() OWNER TO postgres;

--
-- Name: tricky(text); Type: FUNCTION; Schema: app; Owner: postgres
--

CREATE FUNCTION app.tricky(a text) RETURNS text
    LANGUAGE plpgsql
    AS $_X$
BEGIN
/*
COPY app.t (a) FROM stdin;
1	2
\.
*/
    RETURN $_$nested; $_$::text || '\.' || E'\'' || a;
END;
$_X$;


ALTER FUNCTION app.tricky(a text) OWNER TO postgres;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: base; Type: TABLE; Schema: app; Owner: postgres
--

CREATE TABLE app.base (
    id bigint NOT NULL,
    m app.mood DEFAULT 'o''k'::app.mood,
    p app.percent,
    w text NOT NULL,
    doubled numeric GENERATED ALWAYS AS (((p)::numeric * (2)::numeric)) STORED,
    CONSTRAINT "odd; check" CHECK ((w <> 'a;b'::text))
);


ALTER TABLE app.base OWNER TO postgres;

--
-- Name: TABLE base; Type: COMMENT; Schema: app; Owner: postgres
--

COMMENT ON TABLE app.base IS 'line
COPY app.base FROM stdin;
\.
$$;';


--
-- Name: COLUMN base.w; Type: COMMENT; Schema: app; Owner: postgres
--

COMMENT ON COLUMN app.base.w IS '\';


--
-- Name: base_id_seq; Type: SEQUENCE; Schema: app; Owner: postgres
--

ALTER TABLE app.base ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME app.base_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: egg; Type: TABLE; Schema: app; Owner: postgres
--

CREATE TABLE app.egg (
    id integer NOT NULL,
    hen integer
);


ALTER TABLE app.egg OWNER TO postgres;

--
-- Name: hen; Type: TABLE; Schema: app; Owner: postgres
--

CREATE TABLE app.hen (
    id integer NOT NULL,
    egg integer
);


ALTER TABLE app.hen OWNER TO postgres;

--
-- Name: v; Type: VIEW; Schema: app; Owner: postgres
--

CREATE VIEW app.v AS
 SELECT id,
        CASE m
            WHEN 'sad'::app.mood THEN '\;'''::text
            ELSE '--'::text
        END AS x
   FROM app.base;


ALTER VIEW app.v OWNER TO postgres;

--
-- Name: m1; Type: MATERIALIZED VIEW; Schema: app; Owner: postgres
--

CREATE MATERIALIZED VIEW app.m1 AS
 SELECT count(*) AS n
   FROM app.v
  WITH NO DATA;


ALTER MATERIALIZED VIEW app.m1 OWNER TO postgres;

--
-- Name: m2; Type: MATERIALIZED VIEW; Schema: app; Owner: postgres
--

CREATE MATERIALIZED VIEW app.m2 AS
 SELECT (n + 1) AS n
   FROM app.m1
  WITH NO DATA;


ALTER MATERIALIZED VIEW app.m2 OWNER TO postgres;

--
-- Name: parted; Type: TABLE; Schema: app; Owner: postgres
--

CREATE TABLE app.parted (
    k integer,
    v text
)
PARTITION BY RANGE (k);


ALTER TABLE app.parted OWNER TO postgres;

--
-- Name: parted_1; Type: TABLE; Schema: app; Owner: postgres
--

CREATE TABLE app.parted_1 (
    k integer,
    v text
);


ALTER TABLE app.parted_1 OWNER TO postgres;

--
-- Name: nocolumns; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public.nocolumns (
);


ALTER TABLE public.nocolumns OWNER TO postgres;

--
-- Name: odd " name; Type: TABLE; Schema: public; Owner: postgres
--

CREATE TABLE public."odd "" name" (
    "col;" integer NOT NULL,
    "from stdin;" text COLLATE pg_catalog."C"
);


ALTER TABLE public."odd "" name" OWNER TO postgres;

--
-- Name: odd " name_col;_seq; Type: SEQUENCE; Schema: public; Owner: postgres
--

CREATE SEQUENCE public."odd "" name_col;_seq"
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


ALTER SEQUENCE public."odd "" name_col;_seq" OWNER TO postgres;

--
-- Name: odd " name_col;_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: postgres
--

ALTER SEQUENCE public."odd "" name_col;_seq" OWNED BY public."odd "" name"."col;";


--
-- Name: parted_1; Type: TABLE ATTACH; Schema: app; Owner: postgres
--

ALTER TABLE ONLY app.parted ATTACH PARTITION app.parted_1 FOR VALUES FROM (1) TO (10);


--
-- Name: odd " name col;; Type: DEFAULT; Schema: public; Owner: postgres
--

ALTER TABLE ONLY public."odd "" name" ALTER COLUMN "col;" SET DEFAULT nextval('public."odd "" name_col;_seq"'::regclass);


--
-- Name: 1000; Type: BLOB METADATA; Schema: -; Owner: postgres
--

SELECT pg_catalog.lo_create('1000');

ALTER LARGE OBJECT 1000 OWNER TO postgres;

--
-- Name: LARGE OBJECT 1000; Type: COMMENT; Schema: -; Owner: postgres
--

COMMENT ON LARGE OBJECT 1000 IS 'a large; object';


--
-- Data for Name: base; Type: TABLE DATA; Schema: app; Owner: postgres
--

COPY app.base (id, m, p, w) FROM stdin;
1	o'k	1.00	tab\t; line\n\\. '1
2	o'k	2.00	tab\t; line\n\\. '2
3	o'k	3.00	tab\t; line\n\\. '3
4	o'k	4.00	tab\t; line\n\\. '4
5	o'k	5.00	tab\t; line\n\\. '5
6	o'k	6.00	tab\t; line\n\\. '6
7	o'k	7.00	tab\t; line\n\\. '7
8	o'k	8.00	tab\t; line\n\\. '8
9	o'k	9.00	tab\t; line\n\\. '9
10	o'k	10.00	tab\t; line\n\\. '10
11	o'k	11.00	tab\t; line\n\\. '11
12	o'k	12.00	tab\t; line\n\\. '12
13	o'k	13.00	tab\t; line\n\\. '13
14	o'k	14.00	tab\t; line\n\\. '14
15	o'k	15.00	tab\t; line\n\\. '15
16	o'k	16.00	tab\t; line\n\\. '16
17	o'k	17.00	tab\t; line\n\\. '17
18	o'k	18.00	tab\t; line\n\\. '18
19	o'k	19.00	tab\t; line\n\\. '19
20	o'k	20.00	tab\t; line\n\\. '20
\.


--
-- Data for Name: egg; Type: TABLE DATA; Schema: app; Owner: postgres
--

COPY app.egg (id, hen) FROM stdin;
1	1
\.


--
-- Data for Name: hen; Type: TABLE DATA; Schema: app; Owner: postgres
--

COPY app.hen (id, egg) FROM stdin;
1	1
\.


--
-- Data for Name: parted_1; Type: TABLE DATA; Schema: app; Owner: postgres
--

COPY app.parted_1 (k, v) FROM stdin;
1	\\.
2	\N
\.


--
-- Data for Name: nocolumns; Type: TABLE DATA; Schema: public; Owner: postgres
--

COPY public.nocolumns  FROM stdin;

\.


--
-- Data for Name: odd " name; Type: TABLE DATA; Schema: public; Owner: postgres
--

COPY public."odd "" name" ("col;", "from stdin;") FROM stdin;
1	
2	\r\n
3	\N
\.


--
-- Name: base_id_seq; Type: SEQUENCE SET; Schema: app; Owner: postgres
--

SELECT pg_catalog.setval('app.base_id_seq', 20, true);


--
-- Name: odd " name_col;_seq; Type: SEQUENCE SET; Schema: public; Owner: postgres
--

SELECT pg_catalog.setval('public."odd "" name_col;_seq"', 3, true);


--
-- Data for Name: 1000; Type: BLOBS; Schema: -; Owner: postgres
--

BEGIN;

SELECT pg_catalog.lo_open('1000', 131072);
SELECT pg_catalog.lowrite(0, '\x00ff275c');
SELECT pg_catalog.lo_close(0);

COMMIT;

--
-- Name: base base_pkey; Type: CONSTRAINT; Schema: app; Owner: postgres
--

ALTER TABLE ONLY app.base
    ADD CONSTRAINT base_pkey PRIMARY KEY (id);


--
-- Name: egg egg_pkey; Type: CONSTRAINT; Schema: app; Owner: postgres
--

ALTER TABLE ONLY app.egg
    ADD CONSTRAINT egg_pkey PRIMARY KEY (id);


--
-- Name: hen hen_pkey; Type: CONSTRAINT; Schema: app; Owner: postgres
--

ALTER TABLE ONLY app.hen
    ADD CONSTRAINT hen_pkey PRIMARY KEY (id);


--
-- Name: lower_w; Type: INDEX; Schema: app; Owner: postgres
--

CREATE INDEX lower_w ON app.base USING btree (lower(w));


--
-- Name: stats; Type: STATISTICS; Schema: app; Owner: postgres
--

CREATE STATISTICS app.stats ON m, p FROM app.base;


ALTER STATISTICS app.stats OWNER TO postgres;

--
-- Name: egg nothing; Type: RULE; Schema: app; Owner: postgres
--

CREATE RULE nothing AS
    ON DELETE TO app.egg DO INSTEAD NOTHING;


--
-- Name: base touch; Type: TRIGGER; Schema: app; Owner: postgres
--

CREATE TRIGGER touch BEFORE UPDATE ON app.base FOR EACH ROW WHEN ((old.w <> ';'::text)) EXECUTE FUNCTION app.touch('a;', '\b');


--
-- Name: egg egg_hen_fkey; Type: FK CONSTRAINT; Schema: app; Owner: postgres
--

ALTER TABLE ONLY app.egg
    ADD CONSTRAINT egg_hen_fkey FOREIGN KEY (hen) REFERENCES app.hen(id);


--
-- Name: hen hen_egg_fkey; Type: FK CONSTRAINT; Schema: app; Owner: postgres
--

ALTER TABLE ONLY app.hen
    ADD CONSTRAINT hen_egg_fkey FOREIGN KEY (egg) REFERENCES app.egg(id);


--
-- Name: base; Type: ROW SECURITY; Schema: app; Owner: postgres
--

ALTER TABLE app.base ENABLE ROW LEVEL SECURITY;

--
-- Name: base odd policy; Type: POLICY; Schema: app; Owner: postgres
--

CREATE POLICY "odd policy" ON app.base TO reader USING ((w <> ';'::text));


--
-- Name: pub; Type: PUBLICATION; Schema: -; Owner: postgres
--

CREATE PUBLICATION pub WITH (publish = 'insert, update, delete, truncate');


ALTER PUBLICATION pub OWNER TO postgres;

--
-- Name: pub hen; Type: PUBLICATION TABLE; Schema: app; Owner: postgres
--

ALTER PUBLICATION pub ADD TABLE ONLY app.hen (id) WHERE ((id > 0));


--
-- Name: COLUMN base.id; Type: ACL; Schema: app; Owner: postgres
--

GRANT SELECT(id) ON TABLE app.base TO reader;


--
-- Name: COLUMN base.w; Type: ACL; Schema: app; Owner: postgres
--

GRANT UPDATE(w) ON TABLE app.base TO reader;


--
-- Name: TABLE egg; Type: ACL; Schema: app; Owner: postgres
--

GRANT ALL ON TABLE app.egg TO reader WITH GRANT OPTION;


--
-- Name: LARGE OBJECT 1000; Type: ACL; Schema: -; Owner: postgres
--

GRANT SELECT ON LARGE OBJECT 1000 TO PUBLIC;


--
-- Name: DEFAULT PRIVILEGES FOR TABLES; Type: DEFAULT ACL; Schema: app; Owner: writer
--

ALTER DEFAULT PRIVILEGES FOR ROLE writer IN SCHEMA app GRANT SELECT ON TABLES TO reader;


--
-- Name: m1; Type: MATERIALIZED VIEW DATA; Schema: app; Owner: postgres
--

REFRESH MATERIALIZED VIEW app.m1;


--
-- Name: m2; Type: MATERIALIZED VIEW DATA; Schema: app; Owner: postgres
--

REFRESH MATERIALIZED VIEW app.m2;


--
-- PostgreSQL database dump complete
--

