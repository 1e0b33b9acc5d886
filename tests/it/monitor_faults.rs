//! A real QEMU whose monitor goes wrong: questions and answers that are lost, late, cut off or not what was asked for, at the
//! commands of a disk's whole life in a machine. After it the same call does its work, and nothing is left in the machine.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use vbs::config;
use vbs::delegate::vmm::qemu::Qemu;
use vbs::delegate::{Detach, ErrorKind, Result, VmmDelegate};

use crate::vmm_qemu::{GENERATION, Lab, MACHINE, Volume};

/// What happens at a command, and at every which of them. An answer that is lost costs the driver's ten seconds.
const KINDS: [(&str, usize); 8] = [
    ("hangs up before", 7),
    ("hangs up after", 4),
    ("refuses", 7),
    ("babbles", 7),
    ("breaks off", 7),
    ("answers another", 9),
    ("is late", 11),
    ("loses the answer", 25),
];

/// What goes wrong next, and what was asked so far.
#[derive(Default)]
struct Plan {
    fault: Option<(usize, &'static str)>,
    asked: Vec<String>,
}

impl Plan {
    /// Notes a command, and tells what goes wrong with it.
    fn strikes(&mut self, command: &str) -> Option<&'static str> {
        self.asked.push(command.to_owned());
        match self.fault.take() {
            Some((0, kind)) => Some(kind),
            Some((skip, kind)) => {
                self.fault = Some((skip - 1, kind));
                None
            }
            None => None,
        }
    }
}

/// Stands before a monitor.
async fn proxy(own: PathBuf, real: PathBuf, plan: Arc<Mutex<Plan>>) {
    let listener = UnixListener::bind(own).unwrap();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        // One at a time, as a monitor does. What a connection ends of is for the driver to find out.
        let _ = serve(client, &real, &plan).await;
    }
}

async fn serve(client: UnixStream, real: &Path, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let (questions, mut to_client) = client.into_split();
    let (answers, mut to_monitor) = UnixStream::connect(real).await?.into_split();
    let (mut questions, mut answers) = (BufReader::new(questions).lines(), BufReader::new(answers).lines());
    let greeting = answers.next_line().await?.unwrap_or_default();
    tell(&mut to_client, &greeting).await?;
    while let Some(question) = questions.next_line().await? {
        let asked: Value = serde_json::from_str(&question).unwrap();
        let fault = plan.lock().unwrap().strikes(asked["execute"].as_str().unwrap_or_default());
        match fault {
            Some("hangs up before") => return Ok(()),
            Some("refuses") => {
                let error = json!({"class": "GenericError", "desc": "it is not a good day"});
                tell(&mut to_client, &json!({"id": asked["id"], "error": error}).to_string()).await?;
                continue;
            }
            _ => tell(&mut to_monitor, &question).await?,
        }
        // Events go by; the answer has the question's id.
        let answer = loop {
            let Some(line) = answers.next_line().await? else { return Ok(()) };
            if serde_json::from_str::<Value>(&line).unwrap()["id"] == asked["id"] {
                break line;
            }
            tell(&mut to_client, &line).await?;
        };
        match fault {
            Some("hangs up after") => return Ok(()),
            Some("babbles") => tell(&mut to_client, "\u{1b}[2J{\"return\": {}}} \0").await?,
            Some("breaks off") => return to_client.write_all(&answer.as_bytes()[..answer.len() / 2]).await,
            Some("answers another") => tell(&mut to_client, &json!({"id": 77, "return": {}}).to_string()).await?,
            Some("is late") => {
                tell(&mut to_client, &json!({"event": "RESUME", "data": {}}).to_string()).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                tell(&mut to_client, &answer).await?;
            }
            Some("loses the answer") => {}
            _ => tell(&mut to_client, &answer).await?,
        }
    }
    Ok(())
}

async fn tell(to: &mut OwnedWriteHalf, line: &str) -> std::io::Result<()> {
    to.write_all(format!("{line}\n").as_bytes()).await
}

/// Asks as a worker does, until it is done.
async fn until<T>(case: &str, ask: impl AsyncFn() -> Result<T>) -> T {
    for _ in 0..8 {
        match ask().await {
            Ok(done) => return done,
            Err(error) => {
                assert!(matches!(error.kind, ErrorKind::Retry | ErrorKind::Busy), "{case}: {error}");
                assert!(!error.message.contains("secretsecret12"), "{case}: {error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{case}: not done, however often it is asked")
}

/// The scene: a machine that is up, and has no disk of ours before and after.
pub async fn whatever_the_monitor_answers_row_and_machine_agree(lab: &Lab) {
    let plan = Arc::new(Mutex::new(Plan::default()));
    let behind = lab.dir.path().join("proxied");
    std::fs::create_dir(&behind).unwrap();
    let own = behind.join(format!("{MACHINE}.qmp"));
    let serving = tokio::spawn(proxy(own, lab.guest.qmp_socket(), Arc::clone(&plan)));
    let config = config::Qemu { qmp_dir: behind, iqn_prefix: "iqn.2026-01.test.vbs".into(), detach_wait_s: 20 };
    let qemu = Qemu::start(&lab.dir.path().join("vmm-proxied"), &config).await.unwrap();
    let volume = Volume::new(lab.dir.path());
    let export = lab.target.export(&volume, "90");
    let (disk, pause) = (lab.disk(&export), lab.pause(&export));

    let life = async |fault: Option<(usize, &'static str)>| {
        let case = &format!("{fault:?}");
        plan.lock().unwrap().fault = fault;
        until(case, async || qemu.ensure_connected(GENERATION, &lab.connect_spec(&export)).await).await;
        until(case, async || qemu.ensure_attached(GENERATION, &disk).await).await;
        let name = lab.guest_runs(&format!("disk {}", export.volume.serial())).await;
        assert!(name.starts_with("/dev/vd"), "{case}: {name}");
        until(case, async || qemu.ensure_paused(GENERATION, &pause).await).await;
        until(case, async || qemu.ensure_resumed(GENERATION, &pause).await).await;
        until(case, async || match qemu.ensure_detached(GENERATION, &disk, false).await? {
            Detach::Gone => Ok(()),
            Detach::Busy => Err(vbs::delegate::DelegateError::busy("the guest holds on")),
        })
        .await;
        until(case, async || qemu.ensure_disconnected(GENERATION, &disk).await).await;
        plan.lock().unwrap().fault = None;
        let seen = lab.observed().await;
        assert_eq!((seen.disks, seen.running), (vec![], true), "{case}");
        assert!(!lab.machine_rests().await, "{case}: the guest stands still");
        let nodes = lab.monitor("query-named-block-nodes").await.to_string();
        assert!(!nodes.contains(&export.volume.serial()), "{case}: {nodes}");
        lab.target.becomes_free("90");
    };
    life(None).await;
    let asked = std::mem::take(&mut plan.lock().unwrap().asked);
    let mut cases = 0;
    for (shift, (kind, every)) in KINDS.into_iter().enumerate() {
        for at in (shift % every..asked.len()).step_by(every) {
            life(Some((at, kind))).await;
            cases += 1;
        }
    }
    assert!(volume.bytes().iter().all(|byte| *byte == 0), "other bytes");
    println!("{cases} cases: {} kinds of fault at {} commands ({})", KINDS.len(), asked.len(), asked.join(", "));
    serving.abort();
}
