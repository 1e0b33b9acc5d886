//! The LIO and IET drivers against doubles of what they drive: each layer that is missing or wrong, each step that is the last
//! one, and who gets in meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vbs::config;
use vbs::delegate::guard::Guarded;
use vbs::delegate::target::TargetDriver;
use vbs::delegate::target::iet::Iet;
use vbs::delegate::target::lio::Lio;
use vbs::delegate::target::lio_tree::Tree;
use vbs::delegate::volume::file_driver::FileDriver;
use vbs::delegate::volume::local::LocalStorage;
use vbs::delegate::{ErrorKind, ExportSpec, Growth, ObservedExport, Secret};
use vbs::ids::VolumeId;

use crate::delegate_contract::{export, storage_contract};
use crate::support::iet::{Iet as Ietd, InUse, LogIn};
use crate::support::kernel::Kernel;

pub const HOST: &str = "iqn.2026-01.net.example:host";
pub const OTHER: &str = "iqn.2026-01.net.example:other";

/// A volume's file, and the export of it.
struct Volume {
    dir: TempDir,
    spec: ExportSpec,
}

impl Volume {
    fn new() -> Self {
        let (dir, spec) = (tempfile::tempdir().unwrap(), export(&VolumeId::generate(), HOST, 1));
        let volume = Self { dir, spec };
        std::fs::write(volume.path(), [0; 4096]).unwrap();
        std::fs::write(volume.stray(), [0; 4096]).unwrap();
        volume
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(self.spec.volume.as_str())
    }

    fn stray(&self) -> PathBuf {
        self.dir.path().join("stray")
    }

    async fn seen(&self, target: &dyn TargetDriver) -> Vec<ObservedExport> {
        target.exports(&|volume: &VolumeId| self.dir.path().join(volume.as_str())).await.unwrap()
    }

    async fn is_whole(&self, target: &dyn TargetDriver) -> bool {
        self.seen(target).await.iter().any(|export| export.iqn == self.spec.iqn && export.whole)
    }
}

pub fn lio() -> (Arc<Kernel>, Lio) {
    let kernel = Arc::new(Kernel::new());
    let driver = Lio::over(kernel.clone(), ([192, 0, 2, 1], 3260).into());
    (kernel, driver)
}

fn group(spec: &ExportSpec) -> String {
    format!("iscsi/{}/tpgt_1", spec.iqn)
}

fn store(spec: &ExportSpec) -> String {
    format!("core/fileio_2600/{}", spec.volume)
}

pub fn log_in(kernel: &Kernel, spec: &ExportSpec) -> bool {
    kernel.log_in(&spec.iqn, &spec.initiator_iqn, &spec.chap_user, &spec.chap_secret.0)
}

/// A storage node of files with this target.
async fn node(target: impl TargetDriver + 'static, dir: &Path) -> Guarded<LocalStorage> {
    let files = FileDriver::open(dir, &CancellationToken::new()).await.unwrap();
    Guarded::open(Arc::new(LocalStorage::of(Box::new(files), Box::new(target))), dir).await.unwrap()
}

#[tokio::test]
async fn the_file_and_lio_drivers_keep_the_contract() {
    let (dir, (kernel, driver)) = (tempfile::tempdir().unwrap(), lio());
    storage_contract(&node(driver, dir.path()).await).await;
    assert_eq!(kernel.made(), ["iscsi"], "nothing else is left in the kernel");
}

#[tokio::test]
async fn the_file_and_iet_drivers_keep_the_contract() {
    let (dir, ietd) = (tempfile::tempdir().unwrap(), Ietd::start());
    let local = LocalStorage::open(&ietd.storage(dir.path()), &CancellationToken::new()).await.unwrap();
    storage_contract(&Guarded::open(Arc::new(local), dir.path()).await.unwrap()).await;
    assert!(ietd.state().targets.is_empty() && ietd.state().running);
}

#[tokio::test]
async fn iet_is_given_no_thin_volumes_since_it_never_has_them_flushed() {
    let (dir, ietd) = (tempfile::tempdir().unwrap(), Ietd::start());
    let pool = config::Thin { pool: "pool".into(), overcommit: 1.0, full_percent: 90.0 };
    let lvm = config::Lvm { volume_group: "vbs".into(), layout: config::Layout::Thin(pool) };
    let storage = config::Storage { volumes: config::Volumes::Lvm(lvm), ..ietd.storage(dir.path()) };
    let refused = LocalStorage::open(&storage, &CancellationToken::new()).await.err().expect("a refusal");
    assert_eq!(refused.kind, ErrorKind::Fatal);
    assert!(refused.to_string().contains("IET"), "{refused}");
}

/// The paths that a volume's parts have in the kernel.
fn left(kernel: &Kernel, spec: &ExportSpec) -> Vec<String> {
    kernel.made().into_iter().filter(|path| path.contains(spec.volume.as_str())).collect()
}

#[tokio::test]
async fn lio_is_put_right_after_a_death_at_any_step() {
    let volume = Volume::new();
    let (spec, before) = (&volume.spec, export(&volume.spec.volume, HOST, 2));
    for step in 0.. {
        let (kernel, driver) = lio();
        // What an earlier attachment left over.
        driver.ensure_exported(&before, &volume.path()).await.unwrap();
        kernel.dies_after(Some(step));
        let done = driver.ensure_exported(spec, &volume.path()).await.is_ok();
        assert_eq!(volume.is_whole(&driver).await, done, "step {step}");
        kernel.dies_after(None);
        driver.ensure_exported(spec, &volume.path()).await.unwrap();
        assert!(volume.is_whole(&driver).await && log_in(&kernel, spec), "step {step}");
        kernel.log_out(&spec.iqn, HOST);

        kernel.dies_after(Some(step));
        let undone = driver.ensure_not_exported(&spec.volume, &[]).await.is_ok();
        kernel.dies_after(None);
        assert_eq!(log_in(&kernel, spec), step == 0, "the door is closed first");
        kernel.log_out(&spec.iqn, HOST);
        let seen = volume.seen(&driver).await;
        assert_eq!(seen.is_empty(), left(&kernel, spec).is_empty(), "step {step}: {seen:?}");
        driver.ensure_not_exported(&spec.volume, &[]).await.unwrap();
        assert_eq!(kernel.made(), ["iscsi"], "step {step}");
        if done && undone {
            return;
        }
    }
}

#[tokio::test]
async fn lio_mends_what_is_missing_or_wrong_and_under_a_session_only_what_is_missing() {
    let volume = Volume::new();
    let (spec, stray) = (&volume.spec, volume.stray());
    let (at, store, stray) = (group(spec), store(spec), stray.to_str().unwrap());
    let rule = format!("{at}/acls/{HOST}");
    let missing: [&dyn Fn(&Kernel); 10] = [
        &|k| k.unlink(&format!("{rule}/lun_1/volume")).unwrap(),
        &|k| k.unlink(&format!("{rule}/lun_1/volume")).and_then(|()| k.end(&format!("{rule}/lun_1"))).unwrap(),
        &|k| k.write(&format!("{rule}/auth/userid"), "somebody").unwrap(),
        &|k| k.write(&format!("{rule}/auth/password"), "secret-of-attempt-1\n").unwrap(),
        &|k| k.write(&format!("{rule}/lun_1/write_protect"), "1").unwrap(),
        &|k| k.end(&format!("{at}/np/192.0.2.1:3260")).unwrap(),
        &|k| k.shows(&format!("{at}/attrib/generate_node_acls"), "1\n"),
        &|k| k.shows(&format!("{at}/attrib/authentication"), "0\n"),
        &|k| k.shows(&format!("{at}/param/AuthMethod"), "CHAP,None\n"),
        &|k| k.lets_in(&spec.iqn, HOST, OTHER),
    ];
    let wrong: [&dyn Fn(&Kernel); 5] = [
        &|k| k.make(&format!("{at}/np/192.0.2.2:3260")).unwrap(),
        &|k| k.make(&format!("{at}/lun/lun_0")).unwrap(),
        &|k| k.make(&format!("iscsi/{}/tpgt_2", volume.spec.iqn)).unwrap(),
        &|k| k.write(&format!("{store}/wwn/vpd_unit_serial"), "vol00000000").unwrap(),
        &|k| k.write(&format!("{store}/control"), &format!("fd_dev_name={stray}")).unwrap(),
    ];
    let breakages = missing.iter().map(|breaks| (breaks, true)).chain(wrong.iter().map(|breaks| (breaks, false)));
    for (number, (breaks, mended_in_use)) in breakages.enumerate() {
        for in_use in [false, true] {
            let (kernel, driver) = lio();
            driver.ensure_exported(spec, &volume.path()).await.unwrap();
            assert!(!in_use || log_in(&kernel, spec));
            breaks(&kernel);
            // An export that shows another secret is not known to be broken: only the one who logs in knows it.
            let knows_no_secret = (2..4).contains(&number);
            assert_eq!(volume.is_whole(&driver).await, knows_no_secret, "breakage {number}");
            let mended = driver.ensure_exported(spec, &volume.path()).await;
            if in_use && !mended_in_use {
                assert_eq!(mended.unwrap_err().kind, ErrorKind::Retry, "breakage {number}");
                kernel.log_out(&spec.iqn, HOST);
                driver.ensure_exported(spec, &volume.path()).await.unwrap();
            } else {
                mended.unwrap_or_else(|e| panic!("breakage {number}: {e}"));
                assert_eq!(volume.seen(&driver).await[0].sessions.len(), usize::from(in_use), "breakage {number}");
            }
            assert!(volume.is_whole(&driver).await && log_in(&kernel, spec), "breakage {number}");
            let other = ExportSpec { initiator_iqn: OTHER.into(), ..spec.clone() };
            assert!(!log_in(&kernel, &other), "breakage {number}: somebody else gets in");
        }
    }
}

#[tokio::test]
async fn lio_ends_nothing_while_anybody_is_logged_in_by_whatever_door() {
    let volume = Volume::new();
    let (spec, (kernel, driver)) = (&volume.spec, lio());
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    let sessions = format!("iscsi/{}/fabric_statistics/iscsi_instance/sessions", spec.iqn);
    let doors: [(&str, &str, &str); 3] = [
        (&format!("{}/acls/{HOST}/info", group(spec)), "InitiatorName: x\n", "No active iSCSI Session\n"),
        (&format!("{}/dynamic_sessions", group(spec)), &format!("{OTHER}\n\0"), ""),
        (&sessions, "1\n", "0\n"),
    ];
    for (file, taken, free) in doors {
        kernel.shows(file, taken);
        let before = kernel.made();
        for refused in [
            driver.ensure_not_exported(&spec.volume, &[]).await.unwrap_err(),
            driver.ensure_exported(&export(&spec.volume, HOST, 2), &volume.path()).await.unwrap_err(),
        ] {
            assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
        }
        assert_eq!((kernel.made(), volume.seen(&driver).await[0].sessions.len()), (before, 1), "{file}");
        kernel.shows(file, free);
    }
    driver.ensure_not_exported(&spec.volume, &[]).await.unwrap();
}

#[tokio::test]
async fn lio_leaves_alone_what_is_not_ours_and_makes_again_what_a_restart_took() {
    let volume = Volume::new();
    let (spec, (kernel, driver)) = (&volume.spec, lio());
    for dir in ["iscsi", "iscsi/iqn.2003-01.org.linux-iscsi:disk", "core/fileio_0", "core/fileio_0/vol-0123abcd"] {
        kernel.make(dir).unwrap();
    }
    kernel.make("core/fileio_2600").unwrap();
    kernel.make("core/fileio_2600/disk").unwrap();
    let before = kernel.made();
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    driver.ensure_not_exported(&spec.volume, &[]).await.unwrap();
    assert_eq!(kernel.made(), before);
    assert!(volume.seen(&driver).await.is_empty());

    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    kernel.restart();
    assert!(volume.seen(&driver).await.is_empty());
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    assert!(volume.is_whole(&driver).await && log_in(&kernel, spec));
}

#[tokio::test]
async fn lio_ends_an_export_beside_one_that_is_in_use_and_the_backstore_with_the_last() {
    let volume = Volume::new();
    let (kernel, driver) = lio();
    let mut specs = [volume.spec.clone(), export(&volume.spec.volume, HOST, 2)];
    (specs[0].beside, specs[1].beside) = (vec![specs[1].iqn.clone()], vec![specs[0].iqn.clone()]);
    for spec in &specs {
        driver.ensure_exported(spec, &volume.path()).await.unwrap();
        assert!(log_in(&kernel, spec), "one initiator, two sessions");
    }
    let stays = std::slice::from_ref(&specs[0].iqn);
    let refused = driver.ensure_not_exported(&volume.spec.volume, stays).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    kernel.log_out(&specs[1].iqn, HOST);
    for step in 0.. {
        kernel.dies_after(Some(step));
        let done = driver.ensure_not_exported(&volume.spec.volume, stays).await.is_ok();
        kernel.dies_after(None);
        driver.ensure_exported(&specs[0], &volume.path()).await.unwrap();
        let seen = volume.seen(&driver).await;
        let first = seen.iter().find(|export| export.iqn == specs[0].iqn).unwrap();
        assert!(first.whole && first.sessions == [HOST], "step {step}: {seen:?}");
        driver.ensure_not_exported(&volume.spec.volume, stays).await.unwrap();
        assert_eq!(volume.seen(&driver).await.len(), 1, "step {step}");
        if done {
            break;
        }
        driver.ensure_exported(&specs[1], &volume.path()).await.unwrap();
    }
    kernel.log_out(&specs[0].iqn, HOST);
    driver.ensure_not_exported(&volume.spec.volume, &[]).await.unwrap();
    assert_eq!(kernel.made(), ["iscsi"]);
}

#[tokio::test]
async fn iet_ends_an_export_beside_one_that_is_in_use() {
    let volume = Volume::new();
    let ietd = Ietd::start();
    let driver = Iet::new(ietd.config());
    let mut specs = [volume.spec.clone(), export(&volume.spec.volume, HOST, 2)];
    (specs[0].beside, specs[1].beside) = (vec![specs[1].iqn.clone()], vec![specs[0].iqn.clone()]);
    for spec in &specs {
        driver.ensure_exported(spec, &volume.path()).await.unwrap();
    }
    assert_eq!(ietd.log_in(&specs[0]), LogIn::Done);
    let stays = std::slice::from_ref(&specs[0].iqn);
    driver.ensure_not_exported(&volume.spec.volume, stays).await.unwrap();
    assert_eq!(ietd.log_in(&specs[1]), LogIn::NotFound);
    let seen = volume.seen(&driver).await;
    assert!(matches!(&seen[..], [first] if first.whole && first.sessions == [HOST]), "{seen:?}");
    ietd.log_out();
    driver.ensure_not_exported(&volume.spec.volume, &[]).await.unwrap();
    assert!(ietd.state().targets.is_empty());
}

#[tokio::test]
async fn lio_shows_a_file_that_has_grown_at_once() {
    let volume = Volume::new();
    let (spec, (kernel, driver)) = (&volume.spec, lio());
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    assert!(log_in(&kernel, spec));
    std::fs::File::options().write(true).open(volume.path()).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(driver.ensure_grown(&spec.volume, &volume.path(), 1 << 20).await.unwrap(), Growth::Online);
    assert!(kernel.read(&format!("{}/info", store(spec))).unwrap().contains(" Size: 1048576 "));
    assert_eq!(driver.ensure_grown(&spec.volume, &volume.path(), 2 << 20).await.unwrap(), Growth::AtNextAttach);
}

/// Nobody but the one initiator with the one secret is let in.
fn keeps_others_out(ietd: &Ietd, spec: &ExportSpec) {
    for change in [
        |other: &mut ExportSpec| other.initiator_iqn = OTHER.into(),
        |other: &mut ExportSpec| other.initiator_iqn = HOST.replace('.', "-"),
        |other: &mut ExportSpec| other.chap_secret = Secret("secret-of-somebody-else".into()),
        |other: &mut ExportSpec| other.chap_user.push('x'),
    ] {
        let mut other = spec.clone();
        change(&mut other);
        assert_ne!(ietd.log_in(&other), LogIn::Done, "{other:?}");
    }
}

#[tokio::test]
async fn iet_is_put_right_after_a_death_at_any_step_and_is_never_open_to_others() {
    let volume = Volume::new();
    let (spec, before) = (&volume.spec, export(&volume.spec.volume, HOST, 2));
    for (step, lies) in (0..).flat_map(|step| [(step, false), (step, true)]) {
        let ietd = Ietd::start();
        ietd.allow("ALL ALL\n");
        let driver = Iet::new(ietd.config());
        driver.ensure_exported(&before, &volume.path()).await.unwrap();
        let dies_after = |left| {
            ietd.change(|state| (state.dies_after, state.lies) = (left, lies));
        };
        dies_after(Some(step));
        let done = driver.ensure_exported(spec, &volume.path()).await.is_ok();
        keeps_others_out(&ietd, spec);
        keeps_others_out(&ietd, &before);
        dies_after(None);
        assert_eq!(volume.is_whole(&driver).await, done, "step {step}");
        driver.ensure_exported(spec, &volume.path()).await.unwrap();
        keeps_others_out(&ietd, spec);
        assert_eq!((ietd.log_in(spec), ietd.log_in(&before)), (LogIn::Done, LogIn::NotFound), "step {step}");
        ietd.log_out();
        dies_after(Some(step));
        let undone = driver.ensure_not_exported(&spec.volume, &[]).await.is_ok();
        dies_after(None);
        assert_eq!(ietd.log_in(spec), LogIn::NotFound, "step {step}");
        driver.ensure_not_exported(&spec.volume, &[]).await.unwrap();
        assert!(ietd.state().targets.is_empty() && ietd.state().running, "step {step}");
        if done && undone && lies {
            return;
        }
    }
}

#[tokio::test]
async fn iet_mends_every_layer_and_takes_nothing_away_under_a_session() {
    let volume = Volume::new();
    let (spec, stray, ietd) = (&volume.spec, volume.stray(), Ietd::start());
    let driver = Iet::new(ietd.config());
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    let tid = ietd.state().targets[0].tid;
    let (number, path) = (format!("--tid={tid}"), format!("Path={}", stray.display()));
    let user = format!("--params=IncomingUser={}", spec.chap_user);
    let unit = |op| ["--op", op, &number, "--lun=1"];
    let ietadm = |args: &[&str]| assert_eq!(ietd.ietadm(args), Some(0), "{args:?}");
    // What is broken, whether it can be seen, and whether it is mended under a session.
    let breakages: [(&dyn Fn(), bool, bool); 8] = [
        (&|| ietadm(&["--op", "delete", &number, "--user", &user]), true, true),
        (&|| ietadm(&["--op", "new", &number, "--user", "--params=IncomingUser=x,Password=y"]), true, true),
        (&|| ietd.change(|state| state.targets[0].users[0].1 = "another".into()), false, true),
        (&|| ietd.allow("ALL ALL\n"), true, true),
        (&|| ietd.allow(""), true, true),
        (&|| ietadm(&unit("delete")), true, true),
        (
            &|| {
                ietadm(&unit("delete"));
                ietadm(&[&unit("new")[..], &["--params", &path]].concat());
            },
            true,
            false,
        ),
        (&|| ietd.change(|state| state.targets[0].name.make_ascii_uppercase()), true, false),
    ];
    for (number, (breaks, seen, mended_in_use)) in breakages.into_iter().enumerate() {
        for in_use in [false, true] {
            if in_use {
                assert_eq!(ietd.log_in(spec), LogIn::Done, "breakage {number}");
            }
            breaks();
            assert_eq!(volume.is_whole(&driver).await, !seen, "breakage {number}");
            let mended = driver.ensure_exported(spec, &volume.path()).await;
            if in_use && !mended_in_use {
                assert_eq!(mended.unwrap_err().kind, ErrorKind::Retry, "breakage {number}");
                assert_eq!(ietd.state().targets[0].sessions, [HOST]);
                ietd.log_out();
                driver.ensure_exported(spec, &volume.path()).await.unwrap();
            } else {
                mended.unwrap_or_else(|e| panic!("breakage {number}: {e}"));
                assert_eq!(ietd.state().targets[0].sessions.len(), usize::from(in_use));
            }
            assert!(volume.is_whole(&driver).await, "breakage {number}");
            keeps_others_out(&ietd, spec);
            ietd.log_out();
            assert_eq!(ietd.log_in(spec), LogIn::Done, "breakage {number}");
            ietd.log_out();
            assert_eq!(ietd.state().targets[0].tid, tid, "an initiator finds it again under its number");
        }
    }
}

#[tokio::test]
async fn iet_ends_nothing_under_a_session_and_leaves_the_door_as_it_was() {
    let volume = Volume::new();
    let (spec, ietd) = (&volume.spec, Ietd::start());
    let driver = Iet::new(ietd.config());
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    assert_eq!(ietd.log_in(spec), LogIn::Done);
    for refused in [
        driver.ensure_not_exported(&spec.volume, &[]).await.unwrap_err(),
        driver.ensure_exported(&export(&spec.volume, HOST, 2), &volume.path()).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
    }
    ietd.log_out();
    assert_eq!(ietd.log_in(spec), LogIn::Done);
    ietd.log_out();
    driver.ensure_not_exported(&spec.volume, &[]).await.unwrap();
    assert_eq!(ietd.log_in(spec), LogIn::NotFound);
}

#[tokio::test]
async fn iet_puts_back_what_an_ietd_that_died_took_along() {
    let volume = Volume::new();
    let (spec, ietd) = (&volume.spec, Ietd::start());
    let driver = Iet::new(ietd.config());
    assert_eq!(ietd.ietadm(&["--op", "new", "--tid=0", "--params", "Name=iqn.2003-01.org.example:by hand"]), Some(0));
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    let before = ietd.state().targets[0].clone();
    assert_eq!((before.name.as_str(), before.units[0].lun), (spec.iqn.as_str(), 1));
    assert!(spec.volume.serial().ends_with(&before.units[0].serial) && before.units[0].serial.len() == 15);
    assert_eq!(volume.seen(&driver).await.len(), 1, "what was made by hand is not ours");
    ietd.crash(false);
    assert_eq!(driver.ensure_exported(spec, &volume.path()).await.unwrap_err().kind, ErrorKind::Retry);
    ietd.crash(true);
    assert!(volume.seen(&driver).await.is_empty());
    driver.ensure_exported(spec, &volume.path()).await.unwrap();
    assert_eq!(ietd.state().targets[0].tid, before.tid);
    assert_eq!(ietd.log_in(spec), LogIn::Done);
    let comma = volume.dir.path().join("a,b");
    std::fs::write(&comma, "").unwrap();
    assert_eq!(driver.ensure_exported(spec, &comma).await.unwrap_err().kind, ErrorKind::Fatal);
}

#[tokio::test]
async fn iet_outlives_whatever_a_release_does_when_somebody_logs_in_just_before_a_target_ends() {
    for (in_use, stays) in [(InUse::Busy, true), (InUse::NotPermitted, true), (InUse::Dies, false)] {
        let (volume, other, ietd) = (Volume::new(), Volume::new(), Ietd::start());
        let driver = Iet::new(ietd.config());
        for volume in [&other, &volume] {
            driver.ensure_exported(&volume.spec, &volume.path()).await.unwrap();
        }
        let tid = ietd.state().targets[1].tid;
        ietd.change(|state| (state.in_use, state.targets[0].comes) = (in_use, Some(HOST.into())));
        let ended = driver.ensure_not_exported(&volume.spec.volume, &[]).await;
        if stays {
            assert_eq!(ended.unwrap_err().kind, ErrorKind::Retry, "{in_use:?}");
            assert_eq!(ietd.state().targets[0].sessions, [HOST], "{in_use:?}");
            ietd.log_out();
        } else {
            // What was to end has ended, and so has all else. What it says by its status, it says of other things too.
            ended.unwrap();
            assert!(ietd.state().targets.is_empty() && !ietd.state().running);
            let refused = driver.ensure_exported(&other.spec, &other.path()).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Retry, "{refused}");
            ietd.crash(true);
            driver.ensure_exported(&other.spec, &other.path()).await.unwrap();
        }
        driver.ensure_not_exported(&volume.spec.volume, &[]).await.unwrap();
        let left: Vec<_> = ietd.state().targets.into_iter().map(|target| (target.tid, target.name)).collect();
        assert_eq!(left, [(tid, other.spec.iqn.clone())], "{in_use:?}");
        assert_eq!((ietd.log_in(&volume.spec), ietd.log_in(&other.spec)), (LogIn::NotFound, LogIn::Done));
    }
}

#[tokio::test]
async fn iet_gives_out_no_portal_at_which_nobody_listens() {
    let (volume, ietd) = (Volume::new(), Ietd::start());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let deaf = Iet::new(config::Iet { portal: closed, ..ietd.config() });
    let refused = deaf.ensure_exported(&volume.spec, &volume.path()).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Retry && refused.message.contains("nobody listens"), "{refused}");
    let driver = Iet::new(ietd.config());
    let portal = driver.ensure_exported(&volume.spec, &volume.path()).await.unwrap();
    assert_eq!((portal.address, ietd.log_in(&volume.spec)), (ietd.portal().to_string(), LogIn::Done));
}
