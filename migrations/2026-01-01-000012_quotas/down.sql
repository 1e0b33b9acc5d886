ALTER TABLE instances DROP COLUMN terminated_at;
DROP FUNCTION admit_volumes, hold_quotas;
DROP TRIGGER snapshots_counted ON snapshots;
DROP TRIGGER volumes_forgotten ON volumes;
DROP TRIGGER volumes_changed ON volumes;
DROP TRIGGER volumes_made ON volumes;
DROP FUNCTION count_snapshot, count_changed_volume, count_made_volumes, use_more, paid_iops;
DROP TABLE usage;
DROP TABLE quotas;
