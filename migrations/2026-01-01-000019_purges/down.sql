DROP INDEX attachments_of_volume;
