CREATE INDEX tags_by_key ON tags (account_id, key, value, resource_id) INCLUDE (resource_type);
DROP INDEX tags_by_value;
DROP INDEX tags_of_key;
