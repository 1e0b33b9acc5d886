-- Tags of volumes, snapshots and instances. The resource may be any of three tables, so no foreign key; whoever deletes a
-- resource deletes its tags in the same transaction.
CREATE TABLE tags (
    resource_id text NOT NULL,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 128),
    value text NOT NULL CHECK (length(value) <= 256),
    account_id text NOT NULL REFERENCES accounts,
    resource_type text NOT NULL CHECK (resource_type IN ('volume', 'snapshot', 'instance')),
    PRIMARY KEY (resource_id, key)
);
CREATE INDEX tags_of_account ON tags (account_id, resource_id, key);
CREATE INDEX tags_by_key ON tags (account_id, key, value);
