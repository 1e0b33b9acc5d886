DROP INDEX tags_by_key;
CREATE INDEX tags_by_key ON tags (account_id, key, value);
DROP INDEX tags_of_account;
CREATE INDEX tags_of_account ON tags (account_id, resource_id, key);
DROP INDEX attachments_described;
CREATE INDEX volumes_of_account ON volumes (account_id, id) WHERE state <> 'deleted';
DROP INDEX volumes_described;
