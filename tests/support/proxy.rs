//! A way to Postgres that can be cut and stalled, as networks do it: two unix sockets with this between them.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// The name that libpq and its like give a server's socket of the default port.
const SOCKET: &str = ".s.PGSQL.5432";

/// A proxy in front of a Postgres. Connections end when it is dropped.
pub struct Proxy {
    /// What to connect to instead.
    pub url: String,
    weather: watch::Sender<Weather>,
    accepting: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Fair,
    /// Nothing gets through, and nobody is told.
    Stalled,
    /// All connections are broken, and new ones are at once.
    Cut,
}

impl Proxy {
    /// Stands in front of the server and the database of a URL, `postgres:///NAME?user=…&host=%2F…`.
    pub fn start(url: &str) -> Self {
        let (start, host) = url.split_once("host=").expect("the server has a unix socket");
        let directory = percent_encoding::percent_decode_str(host).decode_utf8().unwrap();
        let server = Path::new(&*directory).join(SOCKET);
        let dir = tempfile::tempdir().unwrap();
        let own =
            percent_encoding::utf8_percent_encode(dir.path().to_str().unwrap(), percent_encoding::NON_ALPHANUMERIC);
        let url = format!("{start}host={own}");
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let weather = watch::Sender::new(Weather::Fair);
        let accepting = tokio::spawn(accept(listener, server, weather.clone()));
        Self { url, weather, accepting, _dir: dir }
    }

    /// Breaks all connections, and each new one, until [`Self::restore`].
    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    /// Holds back every byte, in both directions, until [`Self::restore`].
    pub fn stall(&self) {
        self.weather.send_replace(Weather::Stalled);
    }

    /// Lets everything through again; what was held back first.
    pub fn restore(&self) {
        self.weather.send_replace(Weather::Fair);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.weather.send_replace(Weather::Cut);
    }
}

async fn accept(listener: UnixListener, server: PathBuf, weather: watch::Sender<Weather>) {
    while let Ok((client, _)) = listener.accept().await {
        if *weather.borrow() == Weather::Cut {
            continue;
        }
        let (server, weather) = (server.clone(), weather.subscribe());
        tokio::spawn(async move {
            let Ok(server) = UnixStream::connect(server).await else { return };
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            // The end of one direction is the end of both: this is how Postgres and its clients part.
            tokio::select! {
                () = carry(from_client, to_server, weather.clone()) => {}
                () = carry(from_server, to_client, weather) => {}
            }
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut bytes = [0; 16 << 10];
    loop {
        let mut broken = weather.clone();
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            _ = broken.wait_for(|weather| *weather == Weather::Cut) => return,
        };
        let Ok(length @ 1..) = read else { return };
        match weather.wait_for(|weather| *weather != Weather::Stalled).await.map(|weather| *weather) {
            Ok(Weather::Fair) => {}
            _ => return,
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
