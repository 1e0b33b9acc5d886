//! The tables as diesel sees them: `diesel print-schema` of migrations/.

#![allow(missing_docs)]

diesel::table! {
    accounts (id) {
        id -> Text,
        name -> Text,
        enabled -> Bool,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    access_keys (id) {
        id -> Text,
        account_id -> Text,
        sealed_secret -> Bytea,
        enabled -> Bool,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    instances (id) {
        id -> Text,
        node -> Text,
        zone -> Text,
        machine -> Text,
        machine_uuid -> Text,
        account_id -> Nullable<Text>,
        state -> Text,
        initiator_iqn -> Text,
        vcpus -> Int4,
        memory_mib -> Int8,
        launched_at -> Timestamptz,
        created_at -> Timestamptz,
        terminated_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    volumes (id) {
        id -> Text,
        account_id -> Text,
        zone -> Text,
        node -> Text,
        size_gib -> Int4,
        volume_type -> Text,
        iops -> Nullable<Int4>,
        throughput -> Nullable<Int4>,
        initialization_rate -> Nullable<Int4>,
        encrypted -> Bool,
        multi_attach -> Bool,
        snapshot_id -> Nullable<Text>,
        state -> Text,
        state_reason -> Nullable<Text>,
        created_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        client_token -> Nullable<Text>,
        request_digest -> Nullable<Bytea>,
        auto_enable_io -> Bool,
        source_volume_id -> Nullable<Text>,
        missing_since -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    volume_modifications (volume_id) {
        volume_id -> Text,
        account_id -> Text,
        id -> Uuid,
        state -> Text,
        progress -> Int4,
        original_size_gib -> Int4,
        original_type -> Text,
        original_iops -> Nullable<Int4>,
        original_throughput -> Nullable<Int4>,
        original_multi_attach -> Bool,
        target_size_gib -> Int4,
        target_type -> Text,
        target_iops -> Nullable<Int4>,
        target_throughput -> Nullable<Int4>,
        target_multi_attach -> Bool,
        at_next_attach -> Bool,
        reason -> Nullable<Text>,
        started_at -> Timestamptz,
        ended_at -> Nullable<Timestamptz>,
        recent -> Array<Timestamptz>,
    }
}

diesel::table! {
    snapshots (id) {
        id -> Text,
        account_id -> Text,
        volume_id -> Text,
        volume_size_gib -> Int4,
        node -> Text,
        description -> Text,
        encrypted -> Bool,
        state -> Text,
        state_reason -> Nullable<Text>,
        progress -> Int4,
        started_at -> Timestamptz,
        completed_at -> Nullable<Timestamptz>,
        data_bytes -> Nullable<Int8>,
        set_id -> Nullable<Uuid>,
        cut_generation -> Nullable<Int8>,
        source_id -> Nullable<Text>,
        completion_minutes -> Nullable<Int4>,
        status_message -> Nullable<Text>,
    }
}

diesel::table! {
    snapshot_permissions (snapshot_id, grantee) {
        snapshot_id -> Text,
        grantee -> Text,
    }
}

diesel::table! {
    attachments (id) {
        id -> Uuid,
        account_id -> Text,
        volume_id -> Text,
        instance_id -> Text,
        device -> Text,
        device_key -> Text,
        state -> Text,
        delete_on_termination -> Bool,
        force -> Bool,
        iqn -> Text,
        lun -> Int4,
        chap_user -> Text,
        sealed_chap_secret -> Bytea,
        initiator_iqn -> Text,
        attached_at -> Timestamptz,
        detached_at -> Nullable<Timestamptz>,
        reason -> Nullable<Text>,
        multi_attach -> Bool,
    }
}

diesel::table! {
    tags (resource_id, key) {
        resource_id -> Text,
        key -> Text,
        value -> Text,
        account_id -> Text,
        resource_type -> Text,
    }
}

diesel::table! {
    workflows (id) {
        id -> Int8,
        kind -> Text,
        lock_key -> Text,
        volume_id -> Text,
        params -> Jsonb,
        direction -> Text,
        step -> Int4,
        attempts -> Int4,
        failing_since -> Nullable<Timestamptz>,
        not_before -> Timestamptz,
        lease_owner -> Nullable<Text>,
        lease_until -> Nullable<Timestamptz>,
        lease_generation -> Int8,
        error -> Nullable<Text>,
        outcome -> Nullable<Text>,
        created_at -> Timestamptz,
        finished_at -> Nullable<Timestamptz>,
        reason -> Nullable<Text>,
        lane -> Text,
    }
}

diesel::table! {
    workflow_events (id) {
        id -> Int8,
        workflow_id -> Int8,
        at -> Timestamptz,
        generation -> Int8,
        direction -> Text,
        step -> Text,
        event -> Text,
        detail -> Text,
    }
}

diesel::table! {
    nodes (name) {
        name -> Text,
        kind -> Text,
        zone -> Text,
        drivers -> Text,
        capacity_bytes -> Nullable<Int8>,
        free_bytes -> Nullable<Int8>,
        sparse -> Bool,
        answered_at -> Nullable<Timestamptz>,
        error -> Nullable<Text>,
        drained -> Bool,
    }
}

diesel::table! {
    gone (name) {
        name -> Text,
        volume_id -> Text,
        node -> Text,
        gone_at -> Timestamptz,
    }
}

diesel::table! {
    quotas (account_id) {
        account_id -> Text,
        volumes -> Nullable<Int8>,
        gib -> Nullable<Int8>,
        iops -> Nullable<Int8>,
        snapshots -> Nullable<Int8>,
    }
}

diesel::joinable!(access_keys -> accounts (account_id));
diesel::joinable!(attachments -> instances (instance_id));
diesel::joinable!(attachments -> volumes (volume_id));
diesel::joinable!(snapshot_permissions -> snapshots (snapshot_id));
diesel::joinable!(volume_modifications -> volumes (volume_id));
diesel::joinable!(workflow_events -> workflows (workflow_id));
diesel::allow_tables_to_appear_in_same_query!(
    access_keys,
    accounts,
    attachments,
    gone,
    instances,
    nodes,
    quotas,
    snapshot_permissions,
    snapshots,
    tags,
    volume_modifications,
    volumes,
    workflow_events,
    workflows,
);
