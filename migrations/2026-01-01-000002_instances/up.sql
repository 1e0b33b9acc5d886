-- The machines that VMM delegates report. A machine keeps its instance id for as long as its node knows it by the same
-- uuid; another uuid under an old name is another machine.
CREATE TABLE instances (
    id text PRIMARY KEY CHECK (id ~ '^i-([0-9a-f]{8}|[0-9a-f]{17})$'),
    node text NOT NULL,
    zone text NOT NULL,
    machine text NOT NULL,
    machine_uuid text NOT NULL,
    -- Nobody's until the operator or the node's configuration says whose.
    account_id text REFERENCES accounts,
    state text NOT NULL CHECK (state IN ('running', 'stopped', 'terminated')),
    initiator_iqn text NOT NULL,
    vcpus integer NOT NULL,
    memory_mib bigint NOT NULL,
    launched_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX one_instance_a_machine ON instances (node, machine_uuid) WHERE state <> 'terminated';
CREATE INDEX instances_of_account ON instances (account_id, id);
