-- A filter on tags walks an index in the order of a page, whether many resources have what it looks for or few: by the key, with
-- the values to try a pattern on; and by the value, which tells tags apart better than their keys do.
CREATE INDEX tags_of_key ON tags (account_id, key, resource_id) INCLUDE (value, resource_type);
CREATE INDEX tags_by_value ON tags (account_id, value, resource_id) INCLUDE (key, resource_type);
DROP INDEX tags_by_key;
