//! The server over real sockets.

use std::time::Instant;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::*;

/// Answers with the length of the body; `/wait` only when it is let go, `/panic` never. `/warn` writes to the log.
#[derive(Default)]
struct Echo {
    arrived: Notify,
    go: Notify,
}

impl Handler for Echo {
    async fn handle(&self, request: Request) -> Response {
        match request.path() {
            "/panic" => panic!("as asked"),
            "/warn" => tracing::warn!("as asked"),
            "/wait" => {
                self.arrived.notify_one();
                self.go.notified().await;
            }
            "/large" => return Response::new(StatusCode::OK, "text/plain", vec![b'x'; 32 << 20]),
            _ => {}
        }
        let body = format!("{} {} {} {}", request.method, request.uri, request.body.len(), request.id);
        Response::new(StatusCode::OK, "text/plain", body)
    }

    fn refuse(&self, id: &str, refusal: Refusal) -> Response {
        Response::new(refusal.status(), "text/xml", format!("<refused>{refusal} {id}</refused>"))
    }
}

struct Running {
    address: SocketAddr,
    handler: Arc<Echo>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServerError>>,
}

fn run(config: config::Server) -> Running {
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(Echo::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let echo = handler.clone();
    let task = tokio::spawn(async move {
        serve(&config, listener, echo, async {
            let _ = stopped.await;
        })
        .await
    });
    Running { address, handler, stop, task }
}

fn quick() -> config::Server {
    config::Server { read_timeout_s: 1, idle_timeout_s: 3, grace_s: 5, ..config::Server::default() }
}

type Client = BufReader<TcpStream>;

async fn connect(running: &Running) -> Client {
    BufReader::new(TcpStream::connect(running.address).await.unwrap())
}

async fn head(client: &mut BufReader<impl AsyncRead + Unpin>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(client.read_line(&mut head).await.unwrap(), 0, "closed after {head:?}");
    }
    head
}

/// Reads an answer: its head in lower case, and its body.
async fn answer(client: &mut BufReader<impl AsyncRead + Unpin>) -> (String, String) {
    let head = head(client).await.to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

async fn ask(client: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>, request: &str) -> (String, String) {
    client.write_all(request.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    answer(client).await
}

/// A client that asks over a fresh connection, until it is not turned away: who has all the places gets another only for one that has
/// waited for a while.
async fn come_again(running: &Running) -> (String, String) {
    loop {
        let mut client = connect(running).await;
        if client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.is_ok()
            && client.fill_buf().await.is_ok_and(|heard| !heard.is_empty())
        {
            return answer(&mut client).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn is_closed(client: &mut Client) -> bool {
    matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn requests_of_one_connection_are_answered_each_with_an_id_of_its_own() {
    let running = run(quick());
    let mut client = connect(&running).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (head, body) =
            ask(&mut client, "POST /a%20/../b?c=%2A HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc").await;
        assert!(head.starts_with("http/1.1 200") && head.contains("\r\ndate: "), "{head}");
        let (echo, id) = body.rsplit_once(' ').unwrap();
        assert_eq!(echo, "POST /a%20/../b?c=%2A 3");
        assert!(head.contains(&format!("x-amzn-requestid: {id}\r\n")), "{head}");
        ids.push(id.to_owned());
    }
    assert_ne!(ids[0], ids[1]);
}

/// Logs into a file what this thread, and so this test, has to say from this level on.
fn log_from(level: tracing::Level) -> (tempfile::NamedTempFile, tracing::subscriber::DefaultGuard) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = Arc::new(file.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(writer).with_ansi(false).finish();
    (file, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn what_is_logged_of_a_request_has_its_id_also_when_only_warnings_are_logged() {
    let (log, _guard) = log_from(tracing::Level::WARN);
    let running = run(quick());
    let mut client = connect(&running).await;
    let (head, _) = ask(&mut client, "GET /warn HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let id = head.split("x-amzn-requestid: ").nth(1).unwrap().lines().next().unwrap();
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains(&format!("request{{request_id=\"{id}\"}}")) && log.contains("as asked"), "{log}");
}

#[tokio::test]
async fn a_request_whose_client_hangs_up_is_logged_as_broken_off() {
    let (log, _guard) = log_from(tracing::Level::INFO);
    let running = run(quick());
    let mut client = connect(&running).await;
    client.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    running.handler.arrived.notified().await;
    drop(client);
    let ended = async {
        loop {
            let log = std::fs::read_to_string(log.path()).unwrap();
            if let Some(line) = log.lines().find(|line| line.contains("broken off")) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let line = tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    assert!(line.contains("request{request_id=") && line.contains("/wait"), "{line}");
    assert!(!std::fs::read_to_string(log.path()).unwrap().contains("answered"));
}

#[tokio::test]
async fn a_body_of_the_limit_is_read_and_one_byte_more_is_refused_in_the_handlers_words() {
    let running = run(quick());
    for chunked in [false, true] {
        for (size, status) in [(MAX_BODY, "200"), (MAX_BODY + 1, "413"), (3 * MAX_BODY, "413")] {
            let mut client = connect(&running).await;
            let framing = if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {size}") };
            let mut request = format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n").into_bytes();
            if chunked {
                request.extend_from_slice(format!("{size:x}\r\n").as_bytes());
            }
            request.resize(request.len() + size, b'x');
            request.extend_from_slice(if chunked { b"\r\n0\r\n\r\n" } else { b"" });
            client.write_all(&request).await.unwrap();
            let (head, body) = answer(&mut client).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{chunked} {size}: {head}");
            if status == "200" {
                assert!(body.starts_with(&format!("POST / {size} ")), "{body}");
            } else {
                assert!(body.starts_with("<refused>") && head.contains("x-amzn-requestid: "), "{head}{body}");
                assert!(is_closed(&mut client).await);
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_to_go_on_unless_its_body_is_too_large() {
    let running = run(quick());
    let request = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut client = connect(&running).await;
    client.write_all(request(3).as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 100"));
    assert!(ask(&mut client, "abc").await.1.starts_with("POST / 3 "));

    let mut client = connect(&running).await;
    assert!(ask(&mut client, &request(MAX_BODY + 1)).await.0.starts_with("http/1.1 413"));
}

#[tokio::test]
async fn headers_that_trickle_in_end_the_connection_however_long_it_may_be_idle() {
    let running = run(config::Server { idle_timeout_s: 600, ..quick() });
    let mut client = connect(&running).await;
    ask(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let (mut read, mut write) = client.into_inner().into_split();
    let start = Instant::now();
    let trickle = tokio::spawn(async move {
        while write.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(matches!(read.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert!(start.elapsed() >= Duration::from_millis(900) && start.elapsed() < Duration::from_secs(10));
    trickle.await.unwrap();
}

#[tokio::test]
async fn a_connection_may_be_silent_between_requests_for_the_idle_time_and_no_longer() {
    let running = run(config::Server { idle_timeout_s: 2, ..quick() });
    let mut client = connect(&running).await;
    ask(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let start = Instant::now();
    assert!(is_closed(&mut client).await);
    assert!(start.elapsed() >= Duration::from_millis(1900) && start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_body_that_does_not_come_or_is_broken_is_refused() {
    let running = run(quick());
    let mut client = connect(&running).await;
    let (head, body) = ask(&mut client, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc").await;
    assert!(head.starts_with("http/1.1 408") && body.starts_with("<refused>"), "{head}{body}");
    let mut client = connect(&running).await;
    let (head, _) = ask(&mut client, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_loses_its_connection() {
    let running = run(config::Server { max_connections: 1, ..quick() });
    let mut deaf = connect(&running).await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    head(&mut deaf).await;
    // The one place is free again when the first connection has been given up.
    come_again(&running).await;
}

#[tokio::test]
async fn a_panic_is_answered_as_an_internal_error_and_the_connection_goes_on() {
    let running = run(quick());
    let mut client = connect(&running).await;
    let (head, body) = ask(&mut client, "GET /panic HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 500") && body.starts_with("<refused>"), "{head}{body}");
    assert!(ask(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.0.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_refused_in_the_roles_own_words_also_after_a_good_request() {
    let running = run(quick());
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(66_000));
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(400_000));
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(101));
    for (sent, status) in [
        ("\u{16}\u{3}\u{1} hello\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"),
        ("GET /\0 HTTP/1.1\r\n\r\n", "400"),
        (&long, "414"),
        (&large, "431"),
        (&many, "431"),
    ] {
        for good_ones in 0..2 {
            let mut client = connect(&running).await;
            for _ in 0..good_ones {
                ask(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
            }
            client.write_all(sent.as_bytes()).await.unwrap();
            let (head, body) = answer(&mut client).await;
            assert!(head.starts_with(&format!("http/1.1 {status}")) && body.starts_with("<refused>"), "{head}{body}");
            assert!(head.contains("\r\ndate: ") && head.contains(" gmt\r\n"), "{head}");
            let id = head.split_once("x-amzn-requestid: ").unwrap().1.split("\r\n").next().unwrap();
            assert!(body.contains(id) && is_closed(&mut client).await, "{head}{body}");
        }
    }
}

#[tokio::test]
async fn a_newcomer_takes_the_place_of_a_client_that_only_holds_it() {
    let patient = config::Server { max_connections: 1, idle_timeout_s: 600, read_timeout_s: 600, ..quick() };
    let good = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let body = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nabc";
    for held in ["", "GET / HT", body, "GET /large HTTP/1.1\r\nHost: h\r\n\r\n", good] {
        let running = run(patient.clone());
        let mut holder = connect(&running).await;
        holder.write_all(held.as_bytes()).await.unwrap();
        if held == good {
            answer(&mut holder).await;
        }
        assert!(come_again(&running).await.0.starts_with("http/1.1 200"), "{held}");
        let mut rest = Vec::new();
        let _ = holder.read_to_end(&mut rest).await;
        assert!(rest.len() < 32 << 20, "{held}");
    }
}

#[tokio::test]
async fn who_is_served_keeps_the_place_until_the_answer_is_sent() {
    let running = run(config::Server { max_connections: 1, idle_timeout_s: 600, read_timeout_s: 600, ..quick() });
    let mut first = connect(&running).await;
    first.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    running.handler.arrived.notified().await;
    let mut second = connect(&running).await;
    second.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), second.fill_buf()).await.is_err());
    running.handler.go.notify_one();
    assert!(answer(&mut first).await.0.starts_with("http/1.1 200"));
    assert!(answer(&mut second).await.0.starts_with("http/1.1 200"));
    assert!(is_closed(&mut first).await);
}

#[tokio::test]
async fn large_bodies_are_held_so_many_at_once_and_small_ones_always() {
    let running = run(config::Server { read_timeout_s: 600, ..quick() });
    let post = |length: usize| format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    let mut holders = Vec::new();
    for _ in 0..64 {
        let mut holder = connect(&running).await;
        holder.write_all((post(MAX_BODY) + "abc").as_bytes()).await.unwrap();
        holders.push(holder);
    }
    let large = post(100_000) + &"x".repeat(100_000);
    let refused = async || {
        let mut client = connect(&running).await;
        let _ = client.write_all(large.as_bytes()).await;
        answer(&mut client).await.0.starts_with("http/1.1 503")
    };
    while !refused().await {}
    let mut client = connect(&running).await;
    assert!(ask(&mut client, &(post(60_000) + &"x".repeat(60_000))).await.0.starts_with("http/1.1 200"));
    drop(holders);
    while refused().await {}
}

#[tokio::test]
async fn a_stop_finishes_the_request_in_flight_closes_idle_connections_and_refuses_new_ones() {
    let running = run(config::Server { idle_timeout_s: 600, ..quick() });
    let (mut idle, mut busy) = (connect(&running).await, connect(&running).await);
    ask(&mut idle, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    running.handler.arrived.notified().await;
    running.stop.send(()).unwrap();
    assert!(is_closed(&mut idle).await);
    assert!(TcpStream::connect(running.address).await.is_err());
    assert!(!running.task.is_finished());
    running.handler.go.notify_one();
    let (head, _) = answer(&mut busy).await;
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_drains_serves_on_and_sends_clients_elsewhere_with_every_answer() {
    let running = run(config::Server { drain_s: 600, idle_timeout_s: 600, read_timeout_s: 60, ..quick() });
    let mut kept = connect(&running).await;
    let (head, _) = ask(&mut kept, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(!head.contains("connection: close"), "{head}");
    let Running { address, stop, task, .. } = running;
    stop.send(()).unwrap();
    let draining = async {
        loop {
            let mut fresh = BufReader::new(TcpStream::connect(address).await.unwrap());
            let (head, _) = ask(&mut fresh, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
            assert!(head.starts_with("http/1.1 200"), "{head}");
            if head.contains("connection: close") {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), draining).await.unwrap();
    let (head, _) = ask(&mut kept, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    assert!(is_closed(&mut kept).await);
    task.abort();
}

#[tokio::test]
async fn a_request_that_outlasts_the_grace_is_broken_off() {
    let running = run(config::Server { grace_s: 1, ..quick() });
    let mut client = connect(&running).await;
    client.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    running.handler.arrived.notified().await;
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
    assert!(is_closed(&mut client).await);
}

#[tokio::test]
async fn with_a_certificate_and_a_key_it_speaks_tls_and_with_one_of_them_it_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = config::Server { tls_cert: Some(cert.clone()), tls_key: Some(key), ..quick() };
    let running = run(config.clone());

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()));
    // Someone who never shakes hands holds up no one else, and is put out.
    let mut silent = connect(&running).await;
    let stream = TcpStream::connect(running.address).await.unwrap();
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    let mut client = BufReader::new(stream);
    assert!(ask(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.0.starts_with("http/1.1 200"));
    assert!(is_closed(&mut silent).await);

    // Nor does the only place, while somebody else wants it.
    let running = run(config::Server { max_connections: 1, read_timeout_s: 600, ..config.clone() });
    let mut silent = connect(&running).await;
    let stream = loop {
        let stream = TcpStream::connect(running.address).await.unwrap();
        if let Ok(stream) = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await {
            break stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut client = BufReader::new(stream);
    assert!(ask(&mut client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.0.starts_with("http/1.1 200"));
    assert!(is_closed(&mut silent).await);

    for config in [config::Server { tls_key: None, ..config.clone() }, config::Server { tls_key: Some(cert), ..config }]
    {
        assert!(matches!(run(config).task.await.unwrap(), Err(ServerError::Tls(_))));
    }
}
