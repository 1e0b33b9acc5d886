DROP TABLE workflow_events;
DROP TABLE workflows;
DROP SEQUENCE lease_generations;
