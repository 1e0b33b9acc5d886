//! A monitor that answers what the driver asks, for tests that need no guest.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// A machine of one processor.
pub(super) struct Monitor {
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

pub(super) struct State {
    uuid: String,
    pub(super) running: bool,
    /// The devices it has.
    pub(super) devices: Vec<String>,
    /// Its block nodes.
    pub(super) nodes: Vec<Value>,
    /// What the target says that the unit behind them holds, in bytes.
    pub(super) unit_bytes: u64,
    /// What its devices are held to.
    pub(super) limits: Value,
    /// The commands it was given, those that only ask left out.
    pub(super) changes: Vec<String>,
    /// How often it was told to ask its guest for a device. The guest never lets go by itself.
    pub(super) unplugs: usize,
    /// What happens when it is stopped the next time.
    pub(super) on_stop: Option<Box<dyn FnOnce() + Send>>,
}

impl Monitor {
    /// Starts a machine whose socket is `NAME.qmp` in the directory.
    pub(super) fn start(dir: &Path, name: &str, uuid: &str) -> Self {
        let socket = dir.join(format!("{name}.qmp"));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (devices, nodes, changes) = (Vec::new(), Vec::new(), Vec::new());
        let uuid = uuid.to_owned();
        let limits = json!({});
        let state =
            State { uuid, running: true, devices, nodes, unit_bytes: 0, limits, changes, unplugs: 0, on_stop: None };
        let state = Arc::new(Mutex::new(state));
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self { state, serving }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Ends the machine; its socket stays, and nobody listens.
    pub(super) async fn end(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

async fn serve(listener: UnixListener, state: Arc<Mutex<State>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that hangs up in the middle is none of our business.
        let _ = talk(stream, &state).await;
    }
}

async fn talk(stream: UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"{\"QMP\": {}}\n").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let command: Value = serde_json::from_str(&line)?;
        let answer = state.lock().unwrap().answer(&command);
        let (kind, answer) = answer.map_or_else(|e| ("error", e), |answer| ("return", answer));
        let answer = format!("{}\n", json!({kind: answer, "id": command["id"]}));
        stream.get_mut().write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

impl State {
    /// What it returns, or its error.
    fn answer(&mut self, asked: &Value) -> Result<Value, Value> {
        let command = asked["execute"].as_str().unwrap_or_default();
        match command {
            "query-uuid" => return Ok(json!({"UUID": self.uuid})),
            "query-status" => return Ok(json!({"running": self.running, "status": "running"})),
            "query-cpus-fast" => return Ok(json!([{}])),
            "query-named-block-nodes" => return Ok(self.nodes.clone().into()),
            "qom-list" => return Ok(self.devices.iter().map(|name| json!({"name": name})).collect()),
            "query-blockstats" => return Ok(self.devices.iter().map(|name| stats(name)).collect()),
            "query-block" => return Ok(self.devices.iter().map(|name| block(name, &self.limits)).collect()),
            "block_set_io_throttle" => self.limits = asked["arguments"].clone(),
            "block_resize" if asked["arguments"]["size"].as_u64() > Some(self.unit_bytes) => {
                return Err(json!({"class": "GenericError", "desc": "Cannot grow iSCSI devices"}));
            }
            "block_resize" => {
                for node in &mut self.nodes {
                    node["image"]["virtual-size"] = self.unit_bytes.into();
                }
            }
            "device_del" => {
                self.unplugs += 1;
                if self.unplugs > 1 {
                    let device = asked["arguments"]["id"].as_str().unwrap_or_default();
                    let desc = format!("Device {device} is already in the process of unplug");
                    return Err(json!({"class": "GenericError", "desc": desc}));
                }
            }
            "stop" => {
                self.running = false;
                if let Some(happens) = self.on_stop.take() {
                    happens();
                }
            }
            "cont" => self.running = true,
            _ => {}
        }
        if !command.starts_with("query-") && command != "qmp_capabilities" {
            self.changes.push(command.to_owned());
        }
        Ok(json!({}))
    }
}

fn path(device: &str) -> String {
    format!("/machine/peripheral/{device}/virtio-backend")
}

fn block(device: &str, limits: &Value) -> Value {
    json!({"qdev": path(device), "inserted": limits})
}

fn stats(device: &str) -> Value {
    json!({
        "qdev": path(device),
        "stats": {"wr_operations": 1, "wr_bytes": 1, "unmap_operations": 0, "unmap_bytes": 0},
    })
}
