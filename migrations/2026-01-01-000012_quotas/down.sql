ALTER TABLE instances DROP COLUMN terminated_at;
DROP FUNCTION hold_quotas;
DROP TABLE quotas;
