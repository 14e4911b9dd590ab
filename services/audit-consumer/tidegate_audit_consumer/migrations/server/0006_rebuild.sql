-- For a ClickHouse server only, see 0001: what `tidegate rebuild` needs to build tables beside those in use. Give it for the time of a
-- rebuild, or for good.
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP DATABASE, DROP TABLE, DROP VIEW, ALTER, SELECT, INSERT ON tidegate_rebuild.* TO tidegate_writer;
