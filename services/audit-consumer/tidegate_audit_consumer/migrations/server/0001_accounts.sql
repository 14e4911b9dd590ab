-- For a ClickHouse server only: the embedded engine has no accounts. Not run on a server by Tidegate's own tests; the syntax
-- is checked. An administrator runs it once and sets the passwords (or another way of signing in) afterwards.
CREATE ROLE IF NOT EXISTS tidegate_writer;
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, ALTER, SELECT, INSERT ON tidegate.* TO tidegate_writer;
CREATE ROLE IF NOT EXISTS tidegate_reader SETTINGS readonly = 2, max_execution_time = 60 MIN 1 MAX 300;
-- The views run with the rights of who asks, so a reader needs the tables below them as well.
GRANT SELECT ON tidegate.* TO tidegate_reader;
-- But of the keys of subjects their names alone: with one, whoever kept the stored bytes could open them after the erasure. See 0005.
REVOKE SELECT ON tidegate.subject_keys FROM tidegate_reader;
GRANT SELECT(tenant, subject_id, kid, created_at) ON tidegate.subject_keys TO tidegate_reader;
