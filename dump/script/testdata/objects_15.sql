-- What servers have since version 15.
\connect objects
CREATE PUBLICATION pub_rows FOR TABLE app.hen (id) WHERE (id > 0);
CREATE PUBLICATION pub_all FOR TABLES IN SCHEMA app WITH (publish = 'insert');
CREATE TABLE app."distinct" (a integer, UNIQUE NULLS NOT DISTINCT (a));
CREATE VIEW app.invoker WITH (security_invoker = true) AS SELECT 1 AS a;
GRANT SET ON PARAMETER log_min_duration_statement TO writer;
