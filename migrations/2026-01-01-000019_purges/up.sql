-- A volume that is forgotten takes its attachments along. They are looked for whatever their state, in none of the indexes of those
-- that live.
CREATE INDEX attachments_of_volume ON attachments (volume_id);
