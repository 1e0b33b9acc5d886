DROP TABLE access_keys;
DROP TABLE accounts;
DROP FUNCTION announce_access_keys;
