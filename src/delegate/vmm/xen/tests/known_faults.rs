//! What others lost volumes or days to: see `docs/faults.md`.

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
