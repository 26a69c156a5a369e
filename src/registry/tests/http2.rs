//! HTTP/2 by ALPN: what goes over it, and what becomes of requests when it gives trouble.

use std::future::{pending, poll_fn};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::chain_tests::describe;
use super::tls_tests::{authority, server_config};
use super::*;
use crate::registry::{BackoffConfig, ClientConfig, Http2, Image, Platform};
use crate::testkit::registry::TestRegistry;
use crate::units::{BlobOffset, BlobRange};

/// How an HTTP/2 connection fails, once.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Nothing comes any more, not even for a ping.
    Frozen,
    /// Pings are answered, the request is not.
    Silent,
    /// Half of the body, then nothing.
    Stalled,
    /// Half of the body, then RST_STREAM.
    Reset,
    /// Half of the body, then GOAWAY and the end of the connection.
    GoAway,
    /// A body that does not end.
    Endless,
    /// RST_STREAM in place of an answer.
    Refused(Reason),
}

/// What happened at a front.
#[derive(Default)]
struct Seen {
    /// Paths that were asked for over HTTP/2.
    http2: Vec<String>,
    /// Connections on which that was spoken, and on which HTTP/1.1 was.
    connections: [usize; 2],
    trouble: Option<Trouble>,
    /// Bytes of endless bodies that the client let the server send.
    endless_bytes: usize,
}

/// TLS in front of a test registry, which offers HTTP/2.
struct Front {
    address: String,
    ca: String,
    seen: Arc<Mutex<Seen>>,
}

impl Front {
    async fn start(registry: &TestRegistry, offered: &[&str]) -> Self {
        let ca = authority("ca");
        let mut config = server_config(&ca.issue("server"), None);
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (seen, back) = (Arc::<Mutex<Seen>>::default(), registry.host().to_owned());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(acceptor.clone(), stream, back.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, ca: ca.pem.clone(), seen }
    }

    fn trouble(&self, trouble: Trouble) {
        self.seen.lock().expect("no panic").trouble = Some(trouble);
    }

    fn connections(&self) -> [usize; 2] {
        self.seen.lock().expect("no panic").connections
    }

    fn paths(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").http2.clone()
    }
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, back: String, seen: Arc<Mutex<Seen>>) {
    let Ok(mut front) = acceptor.accept(stream).await else { return };
    let is_http2 = front.get_ref().1.alpn_protocol() == Some(b"h2");
    seen.lock().expect("no panic").connections[usize::from(!is_http2)] += 1;
    if is_http2 {
        return http2(front, &back, &seen).await;
    }
    let mut back = TcpStream::connect(back).await.expect("the registry");
    drop(tokio::io::copy_bidirectional(&mut front, &mut back).await);
}

async fn http2(front: TlsStream<TcpStream>, back: &str, seen: &Arc<Mutex<Seen>>) {
    let mut connection = h2::server::handshake(front).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let trouble = {
            let mut seen = seen.lock().expect("no panic");
            seen.http2.push(request.uri().path().to_owned());
            seen.trouble.take()
        };
        match trouble {
            Some(Trouble::Frozen) => pending().await,
            Some(Trouble::Refused(reason)) => respond.send_reset(reason),
            Some(Trouble::GoAway) => {
                let half = answer(back, &request, &mut respond, true).await;
                // The connection's own turns bring the half to the client.
                drop(tokio::time::timeout(Duration::from_millis(100), connection.accept()).await);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                drop(poll_fn(|context| connection.poll_closed(context)).await);
                drop(half);
                return;
            }
            Some(Trouble::Endless) => drop(tokio::spawn(endless(respond, Arc::clone(seen)))),
            other => {
                let back = back.to_owned();
                tokio::spawn(async move {
                    if let Some(Trouble::Silent) = other {
                        pending::<()>().await;
                    }
                    let mut body = answer(&back, &request, &mut respond, other.is_some()).await;
                    if let Some(trouble) = other {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        if let Trouble::Stalled = trouble {
                            pending::<()>().await;
                        }
                        body.send_reset(Reason::INTERNAL_ERROR);
                    }
                });
            }
        }
    }
}

async fn endless(mut respond: SendResponse<Bytes>, seen: Arc<Mutex<Seen>>) {
    let mut body = respond.send_response(Response::new(()), false).expect("sent");
    loop {
        body.reserve_capacity(64 << 10);
        let Some(Ok(bytes)) = poll_fn(|context| body.poll_capacity(context)).await else { return };
        seen.lock().expect("no panic").endless_bytes += bytes;
        body.send_data(vec![0; bytes].into(), false).expect("sent");
    }
}

/// Answers what the registry answers; `half`: not all of it.
async fn answer(
    back: &str,
    request: &Request<h2::RecvStream>,
    respond: &mut SendResponse<Bytes>,
    half: bool,
) -> SendStream<Bytes> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let asked = reqwest::Client::new().request(request.method().clone(), format!("http://{back}{path}"));
    let answered = asked.headers(request.headers().clone()).send().await.expect("an answer");
    let mut head = Response::builder().status(answered.status());
    for (name, value) in answered.headers() {
        head = head.header(name, value);
    }
    let body = answered.bytes().await.expect("a body");
    let mut stream = respond.send_response(head.body(()).expect("a head"), false).expect("sent");
    let sent = if half { body.slice(..body.len() / 2) } else { body };
    stream.send_data(sent, !half).expect("sent");
    stream
}

struct World {
    dir: tempfile::TempDir,
    registry: TestRegistry,
    front: Front,
}

impl World {
    async fn new(offered: &[&str]) -> Self {
        let registry = TestRegistry::start();
        registry.put_image("a/b", "t", &[(b"layer bytes", Digest::of(b"tar"))]);
        let front = Front::start(&registry, offered).await;
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ca.pem"), &front.ca).expect("a file");
        Self { dir, registry, front }
    }

    fn config(&self, http2: Http2) -> ClientConfig {
        let text = format!("server = \"https://{}\"\nca = \"../ca.pem\"\n", self.front.address);
        let limit = Duration::from_millis(1500);
        let config = describe(self.dir.path(), "reg.example", &text);
        ClientConfig { http2, head_limit: limit, idle_limit: limit, ..config }
    }
}

async fn resolve(client: &Client) -> Result<Image, RegistryError> {
    let source = "reg.example/a/b:t".parse().expect("a reference");
    client.resolve(&source, &"linux/amd64".parse::<Platform>().expect("a platform")).await
}

/// Reads the image's layer, as a part of it or as a document.
async fn read(client: &Client, image: &Image, as_document: bool) -> Result<Vec<u8>, RegistryError> {
    let layer = &image.layers[0];
    let blob = if as_document {
        client.artifact(&image.source, layer.digest, layer.size).await?
    } else {
        client.blob(&image.source, layer.digest, layer.size).await?
    };
    let start = BlobOffset::new(if as_document { 0 } else { 6 });
    let mut stream = blob.open(BlobRange::new(start, layer.size).expect("ordered")).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn documents_go_over_http2_and_ranges_do_not_unless_told() {
    const BOTH: &[&str] = &["h2", "http/1.1"];
    for (offered, http2, documents, ranges) in [
        (BOTH, Http2::Documents, true, false),
        (BOTH, Http2::All, true, true),
        (BOTH, Http2::Off, false, false),
        (&["http/1.1"], Http2::Documents, false, false),
        (&[], Http2::All, false, false),
    ] {
        let world = World::new(offered).await;
        let client = Client::new(world.config(http2));
        let image = resolve(&client).await.expect("an image");
        let (of_documents, requests) = (world.front.paths().len(), world.registry.requests().len());
        assert!(requests >= 2);
        assert_eq!(of_documents, if documents { requests } else { 0 }, "{offered:?} {http2:?}");
        assert_eq!(read(&client, &image, true).await.expect("bytes"), b"layer bytes");
        assert_eq!(world.front.paths().len() - of_documents, usize::from(documents));
        let before = world.front.paths().len();
        assert_eq!(read(&client, &image, false).await.expect("bytes"), b"bytes");
        assert_eq!(world.front.paths().len() - before, usize::from(ranges), "{offered:?} {http2:?}");
        // One connection for each kind, and one more where HTTP/2 was asked for in vain.
        let in_vain = http2 != Http2::Off && !documents;
        let [two, one] = world.front.connections();
        let ones = usize::from(!ranges) + usize::from(in_vain);
        assert_eq!((two, one), (usize::from(documents), ones), "{offered:?} {http2:?}");
    }
}

#[tokio::test]
async fn what_goes_wrong_on_http2_is_tried_again_without_it() {
    for trouble in [
        Trouble::Frozen,
        Trouble::Silent,
        Trouble::Stalled,
        Trouble::Reset,
        Trouble::GoAway,
        Trouble::Refused(Reason::REFUSED_STREAM),
        Trouble::Refused(Reason::HTTP_1_1_REQUIRED),
        Trouble::Refused(Reason::ENHANCE_YOUR_CALM),
    ] {
        let world = World::new(&["h2", "http/1.1"]).await;
        let client = Client::new(world.config(Http2::Documents));
        // The connection has served before it fails.
        resolve(&client).await.expect("an image");
        let before = world.front.paths().len();
        world.front.trouble(trouble);
        let resolved = tokio::time::timeout(Duration::from_secs(10), resolve(&client)).await;
        resolved
            .unwrap_or_else(|_| panic!("{trouble:?}: hangs"))
            .unwrap_or_else(|error| panic!("{trouble:?}: {error}"));
        assert_eq!(world.front.paths().len(), before + 1, "{trouble:?}: one request failed, the rest went another way");
        assert_eq!(world.front.connections(), [1, 1], "{trouble:?}");
    }
}

#[tokio::test]
async fn a_frozen_connection_fails_all_its_requests_and_none_that_come_after() {
    let world = World::new(&["h2", "http/1.1"]).await;
    let client = Client::new(world.config(Http2::Documents));
    resolve(&client).await.expect("an image");
    world.front.trouble(Trouble::Frozen);
    let all = (0..8).map(|_| resolve(&client));
    let all = tokio::time::timeout(Duration::from_secs(10), futures_util::future::join_all(all)).await;
    for resolved in all.expect("no hang") {
        resolved.expect("tried again");
    }
    let before = world.front.paths().len();
    resolve(&client).await.expect("an image");
    assert_eq!((world.front.paths().len(), world.front.connections()[0]), (before, 1), "not asked again");
}

#[tokio::test]
async fn trouble_without_another_attempt_is_an_error_that_may_pass_and_holds_no_query() {
    for trouble in [Trouble::Frozen, Trouble::Silent, Trouble::Reset, Trouble::GoAway] {
        let world = World::new(&["h2", "http/1.1"]).await;
        // A mirror is asked with a query; the registry itself is not there.
        let text =
            format!("server = \"http://127.0.0.1:1\"\n[host.\"https://{}\"]\nca = \"../ca.pem\"", world.front.address);
        let config = world.config(Http2::Documents);
        let described = describe(world.dir.path(), "reg.example", &text);
        let backoff = BackoffConfig { retries: Some(0), ..config.backoff };
        let client = Client::new(ClientConfig { backoff, hosts_dirs: described.hosts_dirs, ..config });
        world.front.trouble(trouble);
        let error = resolve(&client).await.expect_err("no second attempt");
        let text = error.to_string();
        assert!(error.is_transient() && text.contains(&world.front.address), "{trouble:?}: {text}");
        assert!(!text.contains("ns="), "{trouble:?}: {text}");
    }
}

#[tokio::test]
async fn what_nobody_reads_is_kept_up_to_a_limit() {
    let world = World::new(&["h2", "http/1.1"]).await;
    let client = Client::new(world.config(Http2::Documents));
    let image = resolve(&client).await.expect("an image");
    let mut unread = Vec::new();
    for _ in 0..3 {
        world.front.trouble(Trouble::Endless);
        let size = BlobOffset::new(1 << 30);
        let blob = client.artifact(&image.source, image.layers[0].digest, size).await.expect("a blob");
        unread.push(blob.open(BlobRange::new(BlobOffset::ZERO, size).expect("ordered")).await.expect("an answer"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let kept_bytes = world.front.seen.lock().expect("no panic").endless_bytes;
    assert!((4 << 20..=8 << 20).contains(&kept_bytes), "{kept_bytes}");
    drop(unread);
    resolve(&client).await.expect("the connection is of use again");
    assert_eq!(world.front.connections(), [1, 0]);
}
