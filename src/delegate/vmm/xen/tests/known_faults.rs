//! What others lost volumes or days to: see `docs/faults.md`.

use futures_util::future::join_all;

use super::*;

impl Lab {
    /// A session with the same target that nobody asked for, with a disk of its own.
    async fn second_session(&self) {
        let done = std::process::Command::new(self.path("iscsiadm")).arg("second").status().unwrap();
        assert!(done.success());
        self.put("sys/class/scsi_host/host3/scan", "0 0 1");
        while !self.path("sys/class/block/sdc").exists() || self.sessions().await != 2 {
            sleep(LOOK).await;
        }
    }

    /// How many sessions with the target there are.
    async fn sessions(&self) -> usize {
        let sessions = self.xen.initiator.sysfs().sessions().await.unwrap();
        sessions.iter().filter(|session| session.iqn == self.disk.iqn).count()
    }

    /// Puts a program in the place of `blockdev`.
    fn blockdev(&self, does: &str) {
        self.put("blockdev", &format!("#!/bin/sh\ncd {}\necho blockdev >> log\n{does}\n", self.dir.path().display()));
    }

    fn take(&self, flag: &str) {
        std::fs::remove_file(self.path(flag)).unwrap();
    }
}

#[tokio::test]
async fn of_two_sessions_with_one_target_one_is_left_by_a_connect_and_none_by_a_disconnect() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.second_session().await;
    lab.log();
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    assert_eq!(lab.sessions().await, 1);
    let log = lab.log();
    assert_eq!(log.matches("blockdev --flushbufs").count(), 2, "both disks were flushed: {log}");
    assert!(log.contains("iscsiadm -m session -r 2 --logout"), "it has no record: {log}");

    lab.second_session().await;
    lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    assert_eq!(lab.sessions().await, 0);
    lab.nothing_is_left();
    let disks: Vec<_> = std::fs::read_dir(lab.path("sys/class/block")).unwrap().collect();
    assert!(disks.is_empty(), "{disks:?}");
}

#[tokio::test]
async fn the_one_unit_is_scanned_for_and_again_when_a_scan_shows_nothing() {
    let lab = Lab::start().await;
    lab.put("misses-scan", "");
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    let log = lab.log();
    let scans: Vec<_> = log.lines().filter(|line| line.starts_with("scan")).collect();
    assert_eq!(scans, ["scan 2: 0 0 1", "scan 2: 0 0 1"], "{log}");
    assert_eq!(lab.disks().await, (vec![false], 1));
}

#[tokio::test]
async fn a_connect_that_is_repeated_logs_in_once() {
    let lab = Lab::start().await;
    for _ in 0..3 {
        lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    }
    assert_eq!(lab.log().matches("--login").count(), 1);
    assert_eq!(lab.sessions().await, 1);
}

#[tokio::test]
async fn whatever_status_a_log_in_fails_with_it_leaves_nothing_and_is_worth_another_try() {
    let lab = Lab::start().await;
    // No answer, all is lost, a wrong secret, busy, again later. A target that is just being put back says any of them.
    for status in ["11", "19", "24", "28", "29"] {
        lab.put("fails", status);
        let refused = lab.xen.ensure_connected(G, &lab.connect).await.unwrap_err();
        assert!(
            refused.kind == ErrorKind::Retry && refused.message.contains(&format!("status: {status}")),
            "{refused}"
        );
        lab.nothing_is_left();
    }
    lab.take("fails");
    lab.put("no-database", "");
    let refused = lab.xen.ensure_connected(G, &lab.connect).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("status: 6"), "{refused}");
    lab.take("no-database");
    lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    lab.nothing_is_left();
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
}

#[tokio::test]
async fn a_log_out_is_done_when_the_session_is_gone_whatever_its_status() {
    // It has failed, is busy, knows of no session: what it says is of no account either way.
    join_all(["10", "28", "21"].map(async |status| {
        let lab = Lab::start().await;
        lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
        lab.put("keeps-session", status);
        let refused = lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Retry, "{status}: {refused}");
        assert!(lab.sessions().await == 1 && lab.path("nodes").join(&lab.disk.iqn).exists(), "{status}");
        lab.take("keeps-session");
        lab.put("status", status);
        lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
        lab.nothing_is_left();
    }))
    .await;
}

#[tokio::test]
async fn a_record_that_cannot_be_deleted_yet_is_deleted_by_the_next_call() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.put("no-database", "");
    let refused = lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("status: 6"), "{refused}");
    lab.take("no-database");
    lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test]
async fn a_log_in_that_says_that_the_session_exists_is_one() {
    let lab = Lab::start().await;
    lab.put("status", "15");
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    assert_eq!(lab.disks().await, (vec![true], 0));
}

#[tokio::test]
async fn a_log_in_that_times_out_or_hangs_leaves_nothing_whether_it_was_done_or_not() {
    let lab = Lab::start().await;
    // It has come to nothing; it has logged in nevertheless and says otherwise; it has and never says so.
    for (flag, text, why) in
        [("times-out", "", "timed out"), ("status", "8", "status: 8"), ("hangs", "", "no end after")]
    {
        lab.put(flag, text);
        let refused = lab.xen.ensure_connected(G, &lab.connect).await.unwrap_err();
        assert!(refused.kind == ErrorKind::Retry && refused.message.contains(why), "{flag}: {refused}");
        lab.nothing_is_left();
        lab.take(flag);
        lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
        lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
        lab.nothing_is_left();
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_flushed_is_not_deleted_and_its_session_does_not_end() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    for (does, why) in
        [("echo 'Input/output error' >&2; exit 1", "Input/output error"), ("exec sleep 60", "no end after")]
    {
        lab.blockdev(does);
        lab.log();
        let refused = lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap_err();
        assert!(refused.kind == ErrorKind::Retry && refused.message.contains(why), "{refused}");
        assert_eq!(lab.log(), "blockdev\n", "what is not flushed is not logged out from");
        assert_eq!((lab.sessions().await, lab.path("sys/class/block/sdb").exists()), (1, true));
    }
    lab.blockdev("exit 0");
    lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
    lab.nothing_is_left();
}

#[tokio::test]
async fn an_attach_that_the_tool_gave_up_and_that_comes_after_all_is_one() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.put("connects-late", "");
    lab.log();
    for _ in 0..2 {
        lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    }
    assert_eq!(lab.disks().await, (vec![true], 0));
    let log = lab.log();
    assert_eq!((log.matches("block-attach").count(), log.matches("block-detach").count()), (1, 0), "{log}");
}

#[tokio::test]
async fn an_attach_that_is_said_to_be_done_and_is_not_leaves_nothing() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.put("closes", "");
    let refused = lab.xen.ensure_attached(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("not connected"), "{refused}");
    assert_eq!(lab.disks().await, (vec![false], 1));
    lab.take("closes");
    lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    assert_eq!(lab.disks().await, (vec![true], 0));
}

#[tokio::test]
async fn what_xenstore_still_has_of_a_disk_is_taken_away_before_it_is_attached_anew_and_anothers_is_not() {
    let lab = Lab::start().await;
    lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
    lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    let text = std::fs::read_to_string(lab.path("xenstore")).unwrap();
    let closed = text.replace("state = \"4\"", "state = \"6\"");
    lab.put("xenstore", &closed);
    lab.log();
    lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
    assert_eq!(lab.disks().await, (vec![true], 0));
    let log = lab.log();
    assert!(log.starts_with("xl block-detach 7 51792\nxl block-attach 7 "), "{log}");

    assert_eq!(lab.xen.ensure_detached(G, &lab.disk, false).await.unwrap(), Detach::Gone);
    lab.log();
    let anothers = closed.replace(&lab.disk.iqn, "iqn.2026-01.t:another").replace("8:10", "8:20");
    lab.put("xenstore", &anothers);
    let refused = lab.xen.ensure_attached(G, &lab.disk).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Fatal && refused.message.contains("another disk as xvdf"), "{refused}");
    assert_eq!((lab.log(), std::fs::read_to_string(lab.path("xenstore")).unwrap()), (String::new(), anothers));
}

#[tokio::test]
async fn xl_and_xm_are_told_to_force_where_each_listens() {
    for (kind, forced) in [
        (config::Toolstack::Xl, "xl block-detach --force 7 51792\n"),
        (config::Toolstack::Xm, "xm block-detach 7 51792 --force\n"),
    ] {
        let lab = Lab::of(kind).await;
        lab.xen.ensure_connected(G, &lab.connect).await.unwrap();
        lab.log();
        lab.xen.ensure_attached(G, &lab.disk).await.unwrap();
        let (log, tool) = (lab.log(), &forced[..2]);
        let path = format!("phy:{}/dev/disk/by-path/ip-", lab.dir.path().display());
        assert!(log.starts_with(&format!("{tool} block-attach 7 {path}")) && log.ends_with("-lun-1 xvdf w\n"), "{log}");
        lab.put("holds", "");
        assert_eq!(lab.xen.ensure_detached(G, &lab.disk, false).await.unwrap(), Detach::Busy);
        assert_eq!(lab.log(), format!("{tool} block-detach 7 51792\n"));
        assert_eq!(lab.xen.ensure_detached(G, &lab.disk, true).await.unwrap(), Detach::Gone);
        assert_eq!(lab.log(), forced);
        lab.xen.ensure_disconnected(G, &lab.disk).await.unwrap();
        lab.nothing_is_left();
    }
}
