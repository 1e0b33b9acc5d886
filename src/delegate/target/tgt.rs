//! The `tgt` driver: exports by a tgtd of our own, in user space, over `tgtadm`.
//!
//! - tgtd keeps nothing on disk and forgets everything when it dies, and every error of its has exit status 22. So each call
//!   reads back what there is and makes up the difference, and does not trust a status of 0 either: a rule is bound when the
//!   account is seen to be there, and an account deleted when the rule or the target is seen to be gone. Nor is one look
//!   trusted with that, which may have been cut short.
//! - Who may log in: nobody, until an access rule is there. It is bound last, after the CHAP account, and taken away first
//!   when an account must change, so that at no moment a target is open without CHAP. A rule by address counts beside
//!   one by name and would open the target to all initiators of a host, so there are none.
//! - Taking the rule away does not end a session, and `logicalunit --op delete` and `--force` do not mind one. A target is
//!   therefore deleted whole and without force, which tgtd refuses while somebody is logged in.
//! - `tgtadm` takes the CHAP secret on its command line and nowhere else; for the few milliseconds it runs, every user of the
//!   node can read it there. Storage nodes are no machines to let others log in to.
//! - A write is answered when it is on the medium (`--bsoflags sync`). A node that has lost its power knows nothing of what it
//!   had answered before, and would take the flush that the initiator sends anew for one of everything.
//! - tgtd opens the volume files, which are their owner's alone: it runs as the same user as the delegate.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::tgt_show::{self, Target};
use super::{PathOf, TargetDriver, check, volume_of};
use crate::config;
use crate::delegate::command::{Command, Failure};
use crate::delegate::{DelegateError, ExportSpec, Growth, ObservedExport, Portal, Result, Secret};
use crate::ids::VolumeId;

/// The unit that holds the disk; 0 is the controller.
const DISK: u32 = 1;

/// How long an un-export waits for a session to end: a log-out returns before the target has noticed.
const SESSION_END: Duration = Duration::from_secs(2);

/// A running tgtd.
pub struct Tgt {
    config: config::Tgt,
    /// One `tgtadm` at a time, since what it is told depends on what it has shown. Holds the secrets of the accounts made by
    /// this process: tgtd does not tell them.
    secrets: Mutex<HashMap<String, Secret>>,
}

impl Tgt {
    /// The tgtd that the configuration tells of. Whether it runs is found out call by call: it may come and go.
    pub fn new(config: config::Tgt) -> Self {
        Self { config, secrets: Mutex::default() }
    }

    /// Gives the target when it can be mended; one that serves something else is deleted.
    async fn sound(&self, target: &Target, spec: &ExportSpec, path: &str) -> Result<Option<Target>> {
        if let Some(stranger) = target.sessions.iter().find(|name| **name != spec.initiator_iqn) {
            return Err(DelegateError::retry(format!("{stranger} is logged in to {}", target.name)));
        }
        let right = |unit: &tgt_show::Unit| match unit.lun {
            0 => true,
            DISK => unit.path == path && unit.online && unit.sync,
            _ => false,
        };
        if target.units.iter().all(right) {
            return Ok(Some(target.clone()));
        }
        refuse_while_in_use(target)?;
        self.delete(target).await?;
        Ok(None)
    }

    async fn new_target(&self, tid: u32, name: &str) -> Result<Target> {
        let tid_text = tid.to_string();
        self.tgtadm(&["--mode", "target", "--op", "new", "--tid", &tid_text, "--targetname", name]).await?;
        Ok(Target { tid, name: name.to_owned(), ..Target::default() })
    }

    async fn ensure_unit(&self, target: &Target, volume: &VolumeId, path: &str) -> Result<()> {
        let (tid, serial) = (target.tid.to_string(), volume.serial());
        let unit = ["--mode", "logicalunit", "--tid", &tid, "--lun", "1"];
        let there = target.units.iter().find(|unit| unit.lun == DISK);
        if there.is_none() {
            let behind = ["--op", "new", "--backing-store", path, "--bstype", "rdwr", "--bsoflags", "sync"];
            self.tgtadm(&[&unit[..], &behind].concat()).await?;
        }
        if there.is_none_or(|unit| unit.serial != serial) {
            // tgtadm takes these in an update only. Thin provisioning is what lets a guest's discards through.
            let params =
                format!("vendor_id=VBS,product_id=VOLUME,scsi_sn={serial},scsi_id={serial},thin_provisioning=1");
            self.tgtadm(&[&unit[..], &["--op", "update", "--params", &params]].concat()).await?;
        }
        Ok(())
    }

    async fn ensure_access(
        &self,
        target: &Target,
        spec: &ExportSpec,
        secrets: &mut HashMap<String, Secret>,
    ) -> Result<()> {
        let tid = target.tid.to_string();
        // After a restart of ours the secret is not known. Who is logged in has proved it is the right one.
        let right_secret = match secrets.get(&spec.chap_user) {
            Some(secret) => *secret == spec.chap_secret,
            None => !target.sessions.is_empty(),
        };
        let right_account = right_secret && target.accounts == [spec.chap_user.as_str()];
        let mut unbound = false;
        for rule in target.acl.iter().filter(|rule| !right_account || **rule != spec.initiator_iqn) {
            self.unbind_rule(&tid, rule).await?;
            unbound = true;
        }
        if !right_account {
            if unbound {
                self.seen(&spec.iqn, "without a rule", |target| target.acl.is_empty()).await?;
            }
            for account in &target.accounts {
                self.delete_account(account, secrets).await?;
            }
            self.new_account(spec, secrets).await?;
            let bind = ["--mode", "account", "--op", "bind", "--tid", &tid, "--user", &spec.chap_user];
            self.tgtadm(&bind).await?;
            self.seen(&spec.iqn, "with its account", |target| target.accounts == [spec.chap_user.as_str()]).await?;
        }
        if !right_account || !target.acl.contains(&spec.initiator_iqn) {
            self.tgtadm(&["--mode", "target", "--op", "bind", "--tid", &tid, "-Q", &spec.initiator_iqn]).await?;
        }
        Ok(())
    }

    /// Looks whether a target is as what was just done should have made it.
    async fn seen(&self, iqn: &str, how: &str, is_so: impl Fn(&Target) -> bool) -> Result<()> {
        let shown = self.targets().await?;
        if shown.iter().any(|target| target.name == iqn && is_so(target)) {
            return Ok(());
        }
        Err(DelegateError::retry(format!("tgtd does not show {iqn} {how}")))
    }

    async fn new_account(&self, spec: &ExportSpec, secrets: &mut HashMap<String, Secret>) -> Result<()> {
        let new = self
            .command(&["--mode", "account", "--op", "new", "--user", &spec.chap_user, "--password"])
            .secret(&spec.chap_secret.0);
        if let Err(failure) = new.run().await {
            if !says(&failure, "this account already exists") {
                return Err(failure.into());
            }
            // It was left over, with a secret that nobody knows.
            self.delete_account(&spec.chap_user, secrets).await?;
            new.run().await?;
        }
        secrets.insert(spec.chap_user.clone(), spec.chap_secret.clone());
        Ok(())
    }

    /// Deletes a target that nobody is logged in to. Its account goes with [`Tgt::settle`].
    async fn delete(&self, target: &Target) -> Result<()> {
        let tid = target.tid.to_string();
        let gone = self.command(&["--mode", "target", "--op", "delete", "--tid", &tid]).run().await;
        absent_is_fine(gone, "can't find the target")
    }

    async fn delete_account(&self, user: &str, secrets: &mut HashMap<String, Secret>) -> Result<()> {
        secrets.remove(user);
        let gone = self.command(&["--mode", "account", "--op", "delete", "--user", user]).run().await;
        absent_is_fine(gone, "can't find the account")
    }

    /// Deletes the accounts of targets that are gone, after them: the other way round a target would be open to whoever has its
    /// initiator's name. So it counts twice what is seen, not what was done. Refuses (Retry) when an unwanted target is still
    /// there. Nobody else makes accounts here, and we make them under the lock only.
    async fn settle(&self, unwanted: impl Fn(&Target) -> bool, secrets: &mut HashMap<String, Secret>) -> Result<()> {
        let accounts = tgt_show::accounts(&self.tgtadm(&["--mode", "account", "--op", "show"]).await?);
        let bound = |shown: &[Target], user: &String| shown.iter().any(|target| target.accounts.contains(user));
        let mut shown = self.targets().await?;
        let unbound: Vec<&String> = accounts.iter().filter(|user| !bound(&shown, user)).collect();
        if !unbound.is_empty() {
            shown.extend(self.targets().await?);
        }
        for account in unbound.into_iter().filter(|user| !bound(&shown, user)) {
            self.delete_account(account, secrets).await?;
        }
        match shown.iter().find(|target| unwanted(target)) {
            Some(target) => {
                Err(DelegateError::retry(format!("tgtd has not deleted {} as it was told to", target.name)))
            }
            None => Ok(()),
        }
    }

    async fn unbind_rule(&self, tid: &str, rule: &str) -> Result<()> {
        // What is shown does not tell addresses (`-I`) from names (`-Q`): `ALL` may be either.
        for kind in ["-Q", "-I"] {
            let gone = self.command(&["--mode", "target", "--op", "unbind", "--tid", tid, kind, rule]).run().await;
            absent_is_fine(gone, "this access control rule does not exist")?;
        }
        Ok(())
    }

    async fn targets(&self) -> Result<Vec<Target>> {
        Ok(tgt_show::targets(&self.tgtadm(&["--mode", "target", "--op", "show"]).await?))
    }

    async fn tgtadm(&self, args: &[&str]) -> Result<String> {
        Ok(self.command(args).run().await?)
    }

    fn command(&self, args: &[&str]) -> Command {
        Command::new(&self.config.tgtadm.to_string_lossy())
            .env("TGT_IPC_SOCKET", self.config.socket_dir.join("ipc"))
            .args(["-C", &self.config.control_port.to_string(), "--lld", "iscsi"])
            .args(args)
    }
}

#[async_trait]
impl TargetDriver for Tgt {
    fn name(&self) -> &'static str {
        "tgt"
    }

    async fn ensure_exported(&self, spec: &ExportSpec, path: &Path) -> Result<Portal> {
        check(spec)?;
        let path = path
            .to_str()
            .filter(|text| text.starts_with('/') && !text.contains([',', '\n']))
            .ok_or_else(|| DelegateError::fatal(format!("tgtadm cannot be given the path {}", path.display())))?;
        let mut secrets = self.secrets.lock().await;
        let shown = self.targets().await?;
        let unwanted = |other: &Target| {
            volume_of(&other.name).as_ref() == Some(&spec.volume)
                && other.name != spec.iqn
                && !spec.is_beside(&other.name)
        };
        let others: Vec<&Target> = shown.iter().filter(|other| unwanted(other)).collect();
        if !others.is_empty() {
            for other in others {
                refuse_while_in_use(other)?;
                self.delete(other).await?;
            }
            self.settle(unwanted, &mut secrets).await?;
        }
        let target = match shown.iter().find(|target| target.name == spec.iqn) {
            Some(target) => self.sound(target, spec, path).await?,
            None => None,
        };
        let target = if let Some(target) = target {
            target
        } else {
            let others = shown.iter().filter(|target| target.name != spec.iqn);
            self.new_target(lowest_free(others), &spec.iqn).await?
        };
        self.ensure_unit(&target, &spec.volume, path).await?;
        self.ensure_access(&target, spec, &mut secrets).await?;
        let shown = self.targets().await?;
        if !shown.iter().any(|target| target.name == spec.iqn && whole(target, &spec.volume, path)) {
            return Err(DelegateError::retry(format!("tgtd has not kept {} as it was told to", spec.iqn)));
        }
        Ok(Portal { address: self.config.portal.to_string() })
    }

    async fn ensure_not_exported(&self, volume: &VolumeId, but: &[String]) -> Result<()> {
        let patience = Instant::now() + SESSION_END;
        loop {
            let mut secrets = self.secrets.lock().await;
            let shown = self.targets().await?;
            let unwanted =
                |target: &Target| volume_of(&target.name).as_ref() == Some(volume) && !but.contains(&target.name);
            let found: Vec<&Target> = shown.iter().filter(|target| unwanted(target)).collect();
            let Some(refusal) = found.iter().find_map(|target| refuse_while_in_use(target).err()) else {
                for target in found {
                    self.delete(target).await?;
                }
                return self.settle(unwanted, &mut secrets).await;
            };
            drop(secrets);
            if Instant::now() >= patience {
                return Err(refusal);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// tgtd learns a file's size when the unit is made. When nobody is logged in, the export is made anew at the next attach.
    async fn ensure_grown(&self, _: &VolumeId, _: &Path, _: u64) -> Result<Growth> {
        Ok(Growth::AtNextAttach)
    }

    async fn exports(&self, path: &PathOf<'_>) -> Result<Vec<ObservedExport>> {
        let _alone = self.secrets.lock().await;
        let shown = self.targets().await?;
        let export = |target: Target| {
            let volume = volume_of(&target.name)?;
            let whole = path(&volume).to_str().is_some_and(|path| whole(&target, &volume, path));
            Some(ObservedExport { iqn: target.name, volume, sessions: target.sessions, whole })
        };
        Ok(shown.into_iter().filter_map(export).collect())
    }
}

fn refuse_while_in_use(target: &Target) -> Result<()> {
    match target.sessions.first() {
        Some(initiator) => Err(DelegateError::retry(format!("{initiator} is logged in to {}", target.name))),
        None => Ok(()),
    }
}

/// Whether every layer is there, as far as tgtd shows it, and nothing that lets others in: each account is a way past the secret.
fn whole(target: &Target, volume: &VolumeId, path: &str) -> bool {
    let right = |unit: &tgt_show::Unit| unit.online && unit.sync && unit.path == path && unit.serial == volume.serial();
    let disk = target.units.iter().any(|unit| unit.lun == DISK && right(unit));
    let one_name = matches!(&target.acl[..], [rule] if rule.contains('.') && rule.contains(':') && !rule.contains('/'));
    disk && one_name && target.accounts.len() == 1
}

/// tgtd takes 1 to 2^31 - 1.
fn lowest_free<'a>(shown: impl Iterator<Item = &'a Target>) -> u32 {
    let mut taken: Vec<u32> = shown.map(|target| target.tid).collect();
    taken.sort_unstable();
    taken.dedup();
    let free = (1..).zip(&taken).find(|(number, tid)| number != *tid).map(|(number, _)| number);
    free.unwrap_or_else(|| taken.last().map_or(1, |last| last + 1))
}

fn says(failure: &Failure, words: &str) -> bool {
    failure.code() == Some(22) && failure.stderr.contains(words)
}

fn absent_is_fine(result: std::result::Result<String, Failure>, words: &str) -> Result<()> {
    match result {
        Err(failure) if !says(&failure, words) => Err(failure.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_target_number_is_taken() {
        let free = |tids: &[u32]| {
            let shown: Vec<_> = tids.iter().map(|tid| Target { tid: *tid, ..Target::default() }).collect();
            lowest_free(shown.iter())
        };
        assert_eq!([free(&[]), free(&[1, 2]), free(&[2]), free(&[4, 1, 2]), free(&[3, 2, 1])], [1, 3, 1, 3, 4]);
    }

    #[test]
    fn an_export_is_whole_only_with_unit_one_account_and_one_rule_by_name() {
        let volume = VolumeId::parse("vol-0123abcd").unwrap();
        let unit = tgt_show::Unit { lun: 1, serial: volume.serial(), path: "/v".into(), online: true, sync: true };
        let good = Target {
            tid: 1,
            name: "iqn.2026-01.net.example:vol-0123abcd".into(),
            sessions: vec![],
            units: vec![unit],
            accounts: vec!["u".into()],
            acl: vec!["iqn.2026-01.net.example:h".into()],
        };
        assert!(whole(&good, &volume, "/v") && !whole(&good, &volume, "/w"));
        let changes: [fn(&mut Target); 9] = [
            |t| t.units.clear(),
            |t| t.units[0].online = false,
            |t| t.units[0].sync = false,
            |t| t.units[0].serial = "beaf11".into(),
            |t| t.accounts.clear(),
            |t| t.accounts.push("another".into()),
            |t| t.acl.clear(),
            |t| t.acl.push("iqn.2026-01.net.example:other".into()),
            |t| t.acl = vec!["10.0.0.0/8".into()],
        ];
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(!whole(&bad, &volume, "/v"), "{bad:?}");
        }
    }
}
