-- Fails while a volume has several live attachments: they must be detached first.
UPDATE workflows SET lock_key = volume_id
    WHERE kind IN ('attach_volume', 'detach_volume') AND finished_at IS NULL;
DROP INDEX one_live_attachment_a_volume_and_instance;
DROP INDEX one_live_attachment_a_volume;
CREATE UNIQUE INDEX one_live_attachment_a_volume ON attachments (volume_id) WHERE state <> 'detached';
ALTER TABLE attachments
    DROP COLUMN multi_attach,
    ADD FOREIGN KEY (volume_id) REFERENCES volumes ON DELETE CASCADE;
ALTER TABLE volumes DROP CONSTRAINT volumes_id_multi_attach_key, DROP CONSTRAINT multi_attach_is_for_some_types;
