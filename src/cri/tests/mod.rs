//! A kubelet on one side, an image service that notes what it gets on the other.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, stream};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{Notify, oneshot};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint, Server};

use super::messages::{AuthConfig, ImageSpec, PullImageRequest, PullImageResponse, RemoveImageRequest};
use super::remembered::login;
use super::*;
use crate::registry::{ImageRef, Keychain, Login, Secret, Wanted};

/// What stands for containerd: keeps what it is asked, answers what it is told to.
#[derive(Clone, Default)]
struct Behind {
    seen: Arc<Mutex<Vec<(String, Bytes, http::HeaderMap)>>>,
    /// The answer's body, and the status in its trailers; the head when there is no body.
    answer: Arc<Mutex<(Bytes, &'static str)>>,
    /// When set, calls wait for it.
    hold: Arc<Mutex<Option<Arc<Notify>>>>,
}

impl NamedService for Behind {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for Behind {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            this.seen.lock().expect("unpoisoned").push((head.uri.path().to_owned(), body, head.headers));
            let hold = this.hold.lock().expect("unpoisoned").clone();
            if let Some(hold) = hold {
                hold.notified().await;
            }
            let (bytes, status) = this.answer.lock().expect("unpoisoned").clone();
            let response = http::Response::builder().header("content-type", "application/grpc");
            let response = if bytes.is_empty() {
                response.header("grpc-status", status).header("grpc-message", "no").body(Body::empty())
            } else {
                let trailers = http::HeaderMap::from_iter([
                    (http::HeaderName::from_static("grpc-status"), status.parse().expect("a value")),
                    (http::HeaderName::from_static("x-more"), "kept".parse().expect("a value")),
                ]);
                response.body(Body::new(Full::new(bytes).with_trailers(std::future::ready(Some(Ok(trailers))))))
            };
            Ok(response.expect("a response"))
        }
        .boxed()
    }
}

fn serve<S>(path: &PathBuf, service: S) -> oneshot::Sender<()>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let listener = UnixListener::bind(path).expect("bound");
    let connections = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = stopped.map(drop);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming_shutdown(connections, stopped));
    stop
}

struct Setting {
    dir: tempfile::TempDir,
    behind: Behind,
    remembered: Remembered,
    kubelet: Channel,
    stops: Vec<oneshot::Sender<()>>,
}

fn setting() -> Setting {
    let dir = tempfile::tempdir().expect("a directory");
    let (front, back) = (dir.path().join("front"), dir.path().join("back"));
    let (behind, remembered) = (Behind::default(), Remembered::default());
    let proxy = ImageService::new(&back, remembered.clone()).expect("an address");
    let stops = vec![serve(&back, behind.clone()), serve(&front, proxy)];
    let endpoint = Endpoint::from_shared(format!("unix:{}", front.display())).expect("an address");
    let kubelet = endpoint.timeout(Duration::from_secs(60)).connect_lazy();
    Setting { dir, behind, remembered, kubelet, stops }
}

fn frame(message: &[u8]) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    bytes.extend(message);
    bytes.into()
}

/// Calls a method with bytes; what came: body, and the status wherever it stands.
async fn call(kubelet: &Channel, method: &str, body: Bytes) -> (Bytes, http::HeaderMap) {
    let request = http::Request::post(format!("http://localhost/runtime.v1.ImageService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-kept", "yes")
        .body(Body::new(Full::new(body)))
        .expect("a request");
    let mut kubelet = kubelet.clone();
    std::future::poll_fn(|context| kubelet.poll_ready(context)).await.expect("ready");
    let response = kubelet.call(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let mut said = head.headers;
    if hyper::body::Body::is_end_stream(&body) {
        said.insert("head-only", "yes".parse().expect("a value"));
    }
    let body = body.collect().await.expect("a body");
    said.extend(body.trailers().cloned().unwrap_or_default());
    (body.to_bytes(), said)
}

fn pull(image: &str, auth: Option<AuthConfig>) -> Bytes {
    let image = Some(ImageSpec { image: image.to_owned() });
    let mut message = PullImageRequest { image, auth }.encode_to_vec();
    // A field of a CRI that is yet to come.
    message.extend([0xfa, 0x3f, 3, b'n', b'e', b'w']);
    frame(&message)
}

fn password(user: &str, password: &str) -> AuthConfig {
    AuthConfig { username: user.to_owned(), password: password.to_owned(), ..AuthConfig::default() }
}

fn answer_image(setting: &Setting, id: &str) {
    let answer = PullImageResponse { image_ref: id.to_owned() }.encode_to_vec();
    *setting.behind.answer.lock().expect("unpoisoned") = (frame(&answer), "0");
}

fn refuse(setting: &Setting) {
    *setting.behind.answer.lock().expect("unpoisoned") = (Bytes::new(), "2");
}

fn known(remembered: &Remembered, image: &str) -> Vec<String> {
    let image: ImageRef = image.parse().expect("a reference");
    let found = remembered.find(Wanted { image: &image, host: image.host(), is_registry: true });
    found.iter().map(|login| login.user.clone()).collect()
}

#[tokio::test]
async fn calls_go_through_byte_for_byte_with_headers_and_trailers() {
    let setting = setting();
    *setting.behind.answer.lock().expect("unpoisoned") = (frame(b"whatever it says"), "0");
    for method in ["ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo", "MethodOfTomorrow"] {
        for body in [pull("a.io/x:1", Some(password("u", "p"))), frame(b"\xff no message at all"), frame(b"")] {
            let (got, said) = call(&setting.kubelet, method, body.clone()).await;
            assert_eq!(got, frame(b"whatever it says"), "{method}");
            assert_eq!((said["grpc-status"].as_bytes(), said["x-more"].as_bytes()), (&b"0"[..], &b"kept"[..]));
            let (path, seen, headers) = setting.behind.seen.lock().expect("unpoisoned").pop().expect("a call");
            assert_eq!((path, seen), (format!("/runtime.v1.ImageService/{method}"), body));
            assert_eq!(headers["x-kept"].as_bytes(), b"yes");
        }
    }
    refuse(&setting);
    for method in ["ListImages", "PullImage"] {
        let (_, said) = call(&setting.kubelet, method, pull("a.io/x:1", Some(password("u", "p")))).await;
        assert_eq!((said["grpc-status"].as_bytes(), said["grpc-message"].as_bytes()), (&b"2"[..], &b"no"[..]));
        assert!(
            said.contains_key("head-only"),
            "{method}: a client of Go's takes the status from a head without a body"
        );
    }
}

#[tokio::test]
async fn credentials_are_known_from_the_pull_to_the_removal() {
    let setting = setting();
    answer_image(&setting, "sha256:0001");
    // While it is under way.
    let hold = Arc::new(Notify::new());
    *setting.behind.hold.lock().expect("unpoisoned") = Some(Arc::clone(&hold));
    let pulling = {
        let kubelet = setting.kubelet.clone();
        tokio::spawn(async move { call(&kubelet, "PullImage", pull("a.io/x:1", Some(password("one", "p")))).await })
    };
    while setting.behind.seen.lock().expect("unpoisoned").is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        known(&setting.remembered, "a.io/x@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
        ["one"]
    );
    *setting.behind.hold.lock().expect("unpoisoned") = None;
    hold.notify_one();
    pulling.await.expect("no panic");
    assert_eq!(known(&setting.remembered, "a.io/x:2"), ["one"]);
    assert!(known(&setting.remembered, "a.io/y:1").is_empty() && known(&setting.remembered, "b.io/x:1").is_empty());

    // One that fails leaves nothing, and takes nothing away.
    refuse(&setting);
    call(&setting.kubelet, "PullImage", pull("a.io/x:1", Some(password("wrong", "p")))).await;
    assert_eq!(known(&setting.remembered, "a.io/x:1"), ["one"]);
    // One without credentials, too.
    answer_image(&setting, "sha256:0001");
    call(&setting.kubelet, "PullImage", pull("a.io/x:1", None)).await;
    call(&setting.kubelet, "PullImage", pull("a.io/x:1", Some(AuthConfig::default()))).await;
    assert_eq!(known(&setting.remembered, "a.io/x:1"), ["one"]);
    // A newer one replaces that of the same image, and comes before that of another tag.
    call(&setting.kubelet, "PullImage", pull("a.io/x:1", Some(password("two", "p")))).await;
    answer_image(&setting, "sha256:0002");
    call(&setting.kubelet, "PullImage", pull("a.io/x:2", Some(password("three", "p")))).await;
    assert_eq!(known(&setting.remembered, "a.io/x:1"), ["three", "two"]);

    let remove =
        |image: &str| frame(&RemoveImageRequest { image: Some(ImageSpec { image: image.to_owned() }) }.encode_to_vec());
    call(&setting.kubelet, "RemoveImage", remove("sha256:0001")).await;
    assert_eq!(known(&setting.remembered, "a.io/x:1"), ["three"]);
    call(&setting.kubelet, "RemoveImage", remove("a.io/x:2")).await;
    assert!(known(&setting.remembered, "a.io/x:1").is_empty());
}

#[tokio::test]
async fn a_kubelet_that_hangs_up_leaves_nothing_behind() {
    let setting = setting();
    *setting.behind.hold.lock().expect("unpoisoned") = Some(Arc::new(Notify::new()));
    let body = pull("a.io/x:1", Some(password("one", "p")));
    let pulling = call(&setting.kubelet, "PullImage", body);
    let begun = async {
        while setting.behind.seen.lock().expect("unpoisoned").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = pulling => panic!("it is held"),
        () = begun => {}
    }
    while !known(&setting.remembered, "a.io/x:1").is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_image_service_that_is_away_is_said_so_and_found_again() {
    let mut setting = setting();
    answer_image(&setting, "sha256:0001");
    assert_eq!(call(&setting.kubelet, "ListImages", frame(b"")).await.1["grpc-status"].as_bytes(), b"0");
    drop(setting.stops.remove(0));
    let back = setting.dir.path().join("back");
    std::fs::remove_file(&back).expect("removed");
    let said = loop {
        let (_, said) = call(&setting.kubelet, "ListImages", frame(b"")).await;
        if said["grpc-status"].as_bytes() != b"0" {
            break said;
        }
    };
    assert_eq!(said["grpc-status"].as_bytes(), b"14", "{said:?}");
    assert!(String::from_utf8_lossy(said["grpc-message"].as_bytes()).contains("image%20service"), "{said:?}");
    setting.stops.push(serve(&back, setting.behind.clone()));
    while call(&setting.kubelet, "ListImages", frame(b"")).await.1["grpc-status"].as_bytes() != b"0" {}
}

#[test]
fn logins_are_read_as_containerd_reads_them() {
    let auth = |user: &str, auth: &str, token: &str| AuthConfig {
        auth: auth.to_owned(),
        identity_token: token.to_owned(),
        ..password(user, "p")
    };
    let want =
        |user: &str, password: &str| Some(Login { user: user.to_owned(), password: Secret::new(password.to_owned()) });
    assert_eq!(login(&auth("u", "eDp5", "t")), Ok(want("u", "p")));
    assert_eq!(login(&auth("", "eDp5", "t")), Ok(want("", "t")));
    assert_eq!(login(&auth("", "eDp5", "")), Ok(want("x", "y")));
    assert_eq!(login(&auth("", "", "")), Ok(None));
    let error = login(&auth("", "hunter2", "")).expect_err("broken");
    assert!(!error.contains("hunter2"));
    assert!(!format!("{:?}", auth("hunter2", "hunter2", "hunter2")).contains("hunter2"));
}

#[test]
fn only_the_named_server_sees_them_and_mirrors_never_else() {
    let remembered = Remembered::default();
    let image: ImageRef = "python".parse().expect("a reference");
    let login = || Login { user: "u".to_owned(), password: Secret::new("hunter2".to_owned()) };
    let find = |host: &str, is_registry| remembered.find(Wanted { image: &image, host, is_registry }).len();
    remembered.begin(image.clone(), None, login()).succeeded(String::new());
    assert_eq!((find("registry-1.docker.io", true), find("mirror.lan", false)), (1, 0));
    for server in ["https://index.docker.io/v1/", "docker.io"] {
        remembered.begin(image.clone(), Some(server.to_owned()), login()).succeeded(String::new());
        assert_eq!((find("registry-1.docker.io", true), find("mirror.lan", false)), (1, 0), "{server}");
    }
    remembered.begin(image.clone(), Some("mirror.lan".to_owned()), login()).succeeded(String::new());
    assert_eq!((find("registry-1.docker.io", true), find("mirror.lan", false)), (0, 1));
    assert_eq!(format!("{remembered:?}"), "(1 credentials)");
}
