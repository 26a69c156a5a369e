use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::super::metrics::Metrics;
use super::super::queue::Queue;
use super::*;
use crate::config::{Builder, Config};
use crate::node::paths::Paths;
use crate::node::protocol::RegistryAccess;

/// A server over a queue that nobody works on.
struct Running {
    address: String,
    queue: Queue,
    stop: watch::Sender<bool>,
}

async fn start(root: &Path, settings: Builder, token: Option<&str>) -> Running {
    let queue = Queue::open(&root.join("builder.db")).expect("a queue");
    let filter = Filter::new(&settings);
    let worker = Arc::new(Worker {
        paths: Paths::new(root.to_owned()),
        config: Config { builder: settings, ..Config::default() },
        platforms: Vec::new(),
        access: RegistryAccess::default(),
        login: None,
        queue: queue.clone(),
        metrics: Metrics::default(),
        wake: Notify::new(),
    });
    let (stop, stopped) = watch::channel(false);
    let token = token.map(|token| Digest::of(token.as_bytes()));
    let server = Arc::new(Server { worker, filter, token, stopped });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(server.run(Listener::Tcp(listener)));
    Running { address, queue, stop }
}

impl Running {
    /// Sends bytes and reads the status and the body of the answer.
    async fn raw(&self, request: &[u8]) -> (u16, String) {
        let stream = TcpStream::connect(&self.address).await.expect("a connection");
        let (mut from, mut to) = stream.into_split();
        // The server may answer, and close, before it has read everything.
        let sending = async { drop(to.write_all(request).await) };
        let mut answer = Vec::new();
        let reading = async { drop(from.read_to_end(&mut answer).await) };
        tokio::join!(sending, reading);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    async fn ask(&self, line: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat()).await
    }

    async fn notify(&self, body: &[u8]) -> (u16, String) {
        self.ask("POST /v1/notifications/distribution", "", body).await
    }
}

fn envelope(names: &[(&str, u8)]) -> Vec<u8> {
    let events: Vec<Value> = names
        .iter()
        .map(|(repository, n)| {
            json!({
                "action": "push", "request": {"host": "r.example:5000"},
                "target": {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "repository": repository, "tag": "1",
                    "digest": Digest::of(&[*n]).to_string(),
                },
            })
        })
        .collect();
    json!({ "events": events }).to_string().into_bytes()
}

fn answer(accepted: u64, duplicates: u64, ignored: u64) -> (u16, String) {
    let body = json!({"accepted": accepted, "duplicates": duplicates, "ignored": ignored});
    (202, format!("{body}\n"))
}

#[tokio::test]
async fn notifications_are_answered_when_they_are_in_the_queue() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = Builder { exclude_repositories: vec!["no/**".into()], max_queued: 3, ..Builder::default() };
    let running = start(dir.path(), settings, None).await;
    assert_eq!(running.notify(&envelope(&[("a", 1), ("b", 1), ("no/c", 1), ("../x", 1)])).await, answer(2, 0, 2));
    assert_eq!(running.notify(&envelope(&[("a", 1), ("a", 2)])).await, answer(1, 1, 0));
    let (status, words) = running.notify(&envelope(&[("a", 3)])).await;
    assert_eq!((status, words.as_str()), (503, "too many images wait; try again later\n"));
    assert_eq!(running.notify(&envelope(&[("a", 1)])).await, answer(0, 1, 0));
    let ecr = json!({
        "detail-type": "ECR Image Action", "account": "123456789012", "region": "eu-west-1",
        "detail": {"action-type": "DELETE", "result": "SUCCESS", "repository-name": "a", "image-digest": Digest::of(b"").to_string()},
    });
    let told = running.ask("POST /v1/notifications/ecr", "", ecr.to_string().as_bytes()).await;
    assert_eq!(told, answer(0, 0, 1));
    assert_eq!(running.queue.counts().expect("a queue").queued, 3);
    let (status, page) = running.ask("GET /metrics", "", b"").await;
    assert_eq!(status, 200);
    for line in [
        "sociblk_builder_queue_length 3",
        "sociblk_builder_images_duplicate_total 2",
        "sociblk_builder_events_rejected_total{reason=\"repository\"} 1",
        "sociblk_builder_events_rejected_total{reason=\"not_a_push\"} 1",
        "sociblk_builder_requests_refused_total{reason=\"unavailable\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    let (status, jobs) = running.ask("GET /v1/jobs?state=queued&limit=2", "", b"").await;
    let jobs: Value = serde_json::from_str(&jobs).expect("JSON");
    assert_eq!((status, jobs["jobs"].as_array().map(Vec::len), &jobs["counts"]["queued"]), (200, Some(2), &json!(3)));
}

#[tokio::test]
async fn hostile_requests_end_in_an_answer() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = start(dir.path(), Builder::default(), None).await;
    let deep = [b"{\"events\":".as_slice(), &b"[".repeat(500_000)].concat();
    let huge = vec![b' '; 10 << 20];
    let no_end = [
        b"POST /v1/notifications/ecr HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
        b"10000\r\n",
        &vec![b' '; 0x10000],
        b"\r\n",
    ]
    .concat();
    let chunk = no_end[no_end.len() - 0x10000 - 9..].to_vec();
    let no_end = [no_end, chunk.repeat(40)].concat();
    assert_eq!(running.notify(&deep).await.0, 400);
    assert_eq!(running.notify(b"{\"events\":7}").await.0, 400);
    assert_eq!(running.notify(b"\xff\xfe\x00").await.0, 400);
    assert_eq!(running.notify(b"").await.0, 400);
    // Closing with bytes unread may reset the connection before the answer is read; it must not be taken in.
    for long in [running.notify(&huge).await.0, running.raw(&no_end).await.0] {
        assert!(matches!(long, 413 | 0), "{long}");
    }
    for (request, want) in [
        ("GET /v1/notifications/ecr", 405),
        ("DELETE /v1/jobs", 405),
        ("GET /v1/jobs?state=odd", 400),
        ("GET /v1/jobs?limit=-1", 400),
        ("GET /", 404),
        ("GET /v1/../metrics", 404),
        ("GET /healthz", 200),
        ("GET /readyz", 200),
    ] {
        assert_eq!(running.ask(request, "", b"").await.0, want, "{request}");
    }
    let long_head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES * 2));
    assert!(matches!(running.raw(long_head.as_bytes()).await.0, 431 | 0));
    assert_eq!(running.raw(b"\x16\x03\x01 nonsense\r\n\r\n").await.0, 400);
    assert_eq!(running.queue.counts().expect("a queue").queued, 0);
    let (_, page) = running.ask("GET /metrics", "", b"").await;
    for line in ["{reason=\"too_long\"} 2", "{reason=\"unreadable\"} 4"] {
        assert!(page.contains(&format!("sociblk_builder_requests_refused_total{line}\n")), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn without_the_token_nothing_comes_in_or_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = start(dir.path(), Builder::default(), Some("hunter2")).await;
    for (header, want) in [
        ("", 401),
        ("Authorization: Bearer hunter\r\n", 401),
        ("Authorization: Bearer hunter22\r\n", 401),
        ("Authorization: Basic hunter2\r\n", 401),
        ("Authorization: Bearer\r\n", 401),
        ("Authorization: B\r\n", 401),
        ("Authorization: Bearer hunter2\r\n", 202),
        ("authorization: bearer hunter2\r\n", 202),
    ] {
        let told = running.ask("POST /v1/notifications/distribution", header, &envelope(&[("a", 1)])).await;
        assert_eq!(told.0, want, "{header}");
        assert!(!told.1.contains("hunter"));
        let jobs = running.ask("GET /v1/jobs", header, b"").await.0;
        assert_eq!(jobs, if want == 202 { 200 } else { 401 }, "{header}");
    }
    assert_eq!(running.ask("GET /healthz", "", b"").await.0, 200, "probes show no token");
    assert_eq!(running.queue.counts().expect("a queue").queued, 1);
}

#[tokio::test]
async fn a_queue_that_cannot_be_written_is_no_success() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = start(dir.path(), Builder::default(), None).await;
    let breaks = rusqlite::Connection::open(dir.path().join("builder.db")).expect("the database");
    breaks.execute_batch("DROP TABLE jobs").expect("dropped");
    let (status, words) = running.notify(&envelope(&[("a", 1)])).await;
    assert_eq!((status, words.as_str()), (503, "the queue cannot be used now; try again later\n"));
    assert_eq!(running.ask("GET /readyz", "", b"").await.0, 503);
    running.stop.send_replace(true);
}
