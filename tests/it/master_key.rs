//! A master key is replaced while a gateway runs.

use std::process::{Command, Output};

use vbs::seal::Sealer;
use vbs::{credentials, master_key};
use zeroize::Zeroizing;

use crate::support::cloud::{self, ACCOUNT, Cloud};
use crate::support::postgres;

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_is_encrypted_under_the_new_master_key_while_requests_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("coming.key");
    let [coming, strange] = [(); 2].map(|()| Sealer::generate_master_key());
    std::fs::write(&file, &coming).unwrap();
    // The gateway knows the coming key already and encrypts under the former one still.
    let cloud = Cloud::start_with(&format!("further_master_keys = [{{ file = '{}' }}]", file.display())).await;
    let volume = cloud.volume().await;
    cloud.attach(&volume, &cloud.instances().await[0], "/dev/sdf").await;

    let mut conn = cloud.pool.get().await.unwrap();
    let former = Zeroizing::new(include_str!("support/master.key").to_owned());
    let sealer = Sealer::with_further(&coming, &[former]).unwrap();
    let done = master_key::rotate(&mut conn, &sealer).await.unwrap();
    assert_eq!((done.renewed, done.unopened.len()), (2, 0), "an access key and an attachment");
    let [name, former_name] = sealer.key_names().try_into().unwrap();
    assert_eq!(master_key::count(&mut conn).await.unwrap(), [(name.clone(), 2)].into());

    cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
    cloud.volume_becomes(&volume, "available").await;

    // What a gateway has meanwhile encrypted under the former key is found by the next rotation, and what nobody can open is
    // named and stays.
    cloud.another_account("999999999999").await;
    let lost = credentials::create(&mut conn, &Sealer::new(&strange).unwrap(), ACCOUNT).await.unwrap();
    assert_eq!(master_key::count(&mut conn).await.unwrap()[&former_name], 1);
    let done = master_key::rotate(&mut conn, &sealer).await.unwrap();
    assert_eq!(done.renewed, 1);
    assert_eq!(done.unopened.iter().map(|(owner, _)| owner.row_id()).collect::<Vec<_>>(), [lost.id]);
    assert_eq!(master_key::count(&mut conn).await.unwrap()[&name], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_key_comes_from_the_environment_and_one_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vbs.toml");
    let text = cloud::file(&postgres::database().await, "", "");
    let key = text.lines().find(|line| line.contains("master_key")).unwrap();
    std::fs::write(&file, text.replace(key, "master_key = { env = 'VBS_TEST_KEY' }")).unwrap();
    let run = |arguments: &[&str], key: Option<&str>| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.args(arguments).arg("--config").arg(&file).envs(key.map(|key| ("VBS_TEST_KEY", key)));
        command.output().unwrap()
    };
    let key = Sealer::generate_master_key();
    assert!(run(&["account", "create", "test", "--id", ACCOUNT], None).status.success(), "no secret is needed for it");
    assert!(run(&["access-key", "create", "test"], Some(&key)).status.success());
    let [name] = Sealer::new(&key).unwrap().key_names().try_into().unwrap();
    let listed = run(&["master-key", "list"], Some(&key));
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), format!("{name}\tencrypts\t1\n"));

    for (key, words) in [(None, "the environment variable VBS_TEST_KEY is not set"), (Some("short"), "master key")] {
        let refused = run(&["access-key", "create", "test"], key);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(words), "{said}");
    }
}
