//! The LIO driver when much is to be done at once: LIO's own tools lose most of ten parallel calls, and all exports for one that
//! cannot be restored (`docs/faults.md`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use vbs::delegate::target::TargetDriver;
use vbs::delegate::target::lio::Lio;
use vbs::delegate::{ErrorKind, ExportSpec, ObservedExport};
use vbs::ids::VolumeId;

use crate::delegate_contract::export;
use crate::support::kernel::Kernel;
use crate::targets::{HOST, lio, log_in};

/// The files of some volumes, and an export of each.
struct Volumes {
    dir: TempDir,
    specs: Vec<ExportSpec>,
}

impl Volumes {
    fn new(count: usize) -> Self {
        let volumes = Self {
            dir: tempfile::tempdir().unwrap(),
            specs: (0..count).map(|_| export(&VolumeId::generate(), HOST, 1)).collect(),
        };
        for spec in &volumes.specs {
            std::fs::write(volumes.path(&spec.volume), [0; 4096]).unwrap();
        }
        volumes
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.dir.path().join(volume.as_str())
    }

    async fn seen(&self, driver: &Lio) -> Vec<ObservedExport> {
        driver.exports(&|volume: &VolumeId| self.path(volume)).await.unwrap()
    }
}

/// Exports ten volumes at once and ends them at once, each by the next of the drivers.
async fn all_at_once(kernel: &Arc<Kernel>, drivers: &[Lio], real_lock: bool) {
    let volumes = Volumes::new(10);
    kernel.watch_turns(real_lock);
    let paths: Vec<_> = volumes.specs.iter().map(|spec| volumes.path(&spec.volume)).collect();
    let made = volumes.specs.iter().zip(&paths).zip(drivers.iter().cycle());
    let made = made.map(|((spec, path), driver)| driver.ensure_exported(spec, path));
    join_all(made).await.into_iter().for_each(|made| drop(made.unwrap()));
    assert_eq!(kernel.turns(), (10, 0), "(turns, broken) of the exports");
    let seen = volumes.seen(&drivers[0]).await;
    assert!(seen.len() == 10 && seen.iter().all(|export| export.whole), "{seen:?}");

    kernel.watch_turns(real_lock);
    // Half of them are gone twice, and half made anew meanwhile, which takes away what they share and needs it.
    let (half, rest) = volumes.specs.split_at(5);
    let gone = half.iter().chain(half).zip(drivers.iter().cycle());
    let gone = gone.map(|(spec, driver)| driver.ensure_not_exported(&spec.volume, &[]));
    let again = rest.iter().zip(&paths[5..]).zip(drivers.iter().cycle());
    let again = again.map(|((spec, path), driver)| driver.ensure_exported(spec, path));
    let (gone, again) = tokio::join!(join_all(gone), join_all(again));
    for done in gone.into_iter().chain(again.into_iter().map(|made| made.map(drop))) {
        done.unwrap();
    }
    assert_eq!(kernel.turns(), (15, 0), "(turns, broken) of the rest");
    assert_eq!(volumes.seen(&drivers[0]).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_exports_at_once_are_made_one_after_another_by_one_delegate() {
    let (kernel, driver) = lio();
    all_at_once(&kernel, &[driver], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_exports_at_once_are_made_one_after_another_by_two_programs() {
    let (kernel, driver) = lio();
    let other = Lio::over(kernel.clone(), ([192, 0, 2, 1], 3260).into());
    all_at_once(&kernel, &[driver, other], true).await;
}

#[tokio::test]
async fn a_log_out_that_the_target_notices_late_is_waited_for() {
    let (volumes, (kernel, driver)) = (Volumes::new(1), lio());
    let spec = &volumes.specs[0];
    driver.ensure_exported(spec, &volumes.path(&spec.volume)).await.unwrap();
    assert!(log_in(&kernel, spec));
    let noticed = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kernel.log_out(&spec.iqn, HOST);
    };
    let (ended, ()) = tokio::join!(driver.ensure_not_exported(&spec.volume, &[]), noticed);
    ended.unwrap();
    assert_eq!(kernel.made(), ["iscsi"]);
}

#[tokio::test]
async fn a_volume_that_is_lost_keeps_no_other_from_being_exported_anew() {
    let (volumes, (kernel, driver)) = (Volumes::new(3), lio());
    let [first, lost, third] = &volumes.specs[..] else { unreachable!() };
    for spec in &volumes.specs {
        driver.ensure_exported(spec, &volumes.path(&spec.volume)).await.unwrap();
    }
    std::fs::remove_file(volumes.path(&lost.volume)).unwrap();
    let whole = async |spec: &ExportSpec| {
        let seen = volumes.seen(&driver).await;
        seen.iter().any(|export| export.iqn == spec.iqn && export.whole)
    };
    assert!(whole(first).await && !whole(lost).await && whole(third).await);
    kernel.restart();
    for spec in &volumes.specs {
        let made = driver.ensure_exported(spec, &volumes.path(&spec.volume)).await;
        match made {
            Err(e) => assert!(spec.iqn == lost.iqn && e.kind == ErrorKind::Retry, "{e}"),
            Ok(_) => assert!(spec.iqn != lost.iqn && log_in(&kernel, spec)),
        }
    }
    assert!(whole(first).await && !whole(lost).await && whole(third).await);
    assert_eq!(volumes.seen(&driver).await.len(), 2, "nothing half made of the one that is lost");
    driver.ensure_not_exported(&lost.volume, &[]).await.unwrap();
    assert!(whole(first).await && whole(third).await);
}
