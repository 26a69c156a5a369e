//! An API server with secrets, on loopback.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What it was asked: path with query, and the header `Authorization`.
pub type Asked = (String, Option<String>);

#[derive(Default)]
pub struct State {
    pub version: u64,
    pub secrets: BTreeMap<String, Value>,
    watchers: Vec<mpsc::UnboundedSender<String>>,
    pub asked: Vec<Asked>,
    /// Answered to everything.
    pub refuse: Option<(u16, &'static str)>,
    /// Versions before this are forgotten.
    pub oldest: u64,
    /// Secrets on a page.
    pub page: usize,
}

#[derive(Clone)]
pub struct Server {
    state: Arc<Mutex<State>>,
    pub address: String,
}

/// A secret for one registry.
pub fn secret(name: &str, registry: &str, user: &str) -> Value {
    secret_of(name, &json!({"auths": {registry: {"username": user, "password": "hunter2"}}}).to_string())
}

pub fn secret_of(name: &str, config: &str) -> Value {
    let data = base64::engine::general_purpose::STANDARD.encode(config);
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": name, "namespace": "team", "resourceVersion": "0", "labels": {"a": "b"}},
        "data": {".dockerconfigjson": data},
    })
}

impl Server {
    pub async fn start() -> Self {
        let (server, listener) = Self::bind().await;
        let answering = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answering.clone().connection(stream));
            }
        });
        server
    }

    pub async fn start_tls(acceptor: tokio_rustls::TlsAcceptor) -> Self {
        let (server, listener) = Self::bind().await;
        let answering = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answering) = (acceptor.clone(), answering.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        answering.connection(stream).await;
                    }
                });
            }
        });
        server
    }

    async fn bind() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = State { version: 10, page: 100, ..State::default() };
        (Self { state: Arc::new(Mutex::new(state)), address }, listener)
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("unpoisoned")
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request: Request<Incoming>| {
            let response = self.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let mut state = self.lock();
        let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let uri = request.uri().to_string();
        state.asked.push((uri.clone(), authorization.map(str::to_owned)));
        let document = |status: u16, document: Value| {
            let body = Full::new(Bytes::from(document.to_string())).boxed();
            Response::builder().status(status).body(body).expect("a response")
        };
        if let Some((status, message)) = state.refuse {
            return document(status, json!({"kind": "Status", "code": status, "message": message}));
        }
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        if !request.uri().path().ends_with("/api/v1/secrets")
            || query["fieldSelector"] != "type=kubernetes.io/dockerconfigjson"
        {
            return document(404, json!({"code": 404, "message": "the server could not find the requested resource"}));
        }
        if !query.contains_key("watch") {
            let from: usize = query.get("continue").map_or(0, |at| at.parse().expect("our own"));
            let items: Vec<_> = state.secrets.values().skip(from).take(state.page).collect();
            let next = from + items.len();
            let next = if next < state.secrets.len() { next.to_string() } else { String::new() };
            let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
            return document(200, json!({"kind": "SecretList", "metadata": metadata, "items": items}));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let version: u64 = query["resourceVersion"].parse().expect("a version that we gave");
        if version < state.oldest {
            let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}});
            sender.send(format!("{gone}\n")).expect("open");
        } else {
            state.watchers.push(sender);
        }
        let pieces = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|line| (Ok(Frame::data(Bytes::from(line))), receiver))
        });
        Response::new(BodyExt::boxed(StreamBody::new(pieces)))
    }

    /// Sends to all who watch.
    pub fn send(&self, text: &str) {
        self.lock().watchers.retain(|watcher| watcher.send(text.to_owned()).is_ok());
    }

    fn event(&self, kind: &str, object: &Value) {
        self.send(&format!("{}\n", json!({"type": kind, "object": object})));
    }

    /// Adds or changes a secret.
    pub fn put(&self, mut secret: Value) {
        let name = secret["metadata"]["name"].as_str().expect("a name").to_owned();
        let kind = {
            let mut state = self.lock();
            state.version += 1;
            secret["metadata"]["resourceVersion"] = state.version.to_string().into();
            if state.secrets.insert(name, secret.clone()).is_some() { "MODIFIED" } else { "ADDED" }
        };
        self.event(kind, &secret);
    }

    pub fn delete(&self, name: &str) {
        let secret = {
            let mut state = self.lock();
            state.version += 1;
            let mut secret = state.secrets.remove(name).expect("there");
            secret["metadata"]["resourceVersion"] = state.version.to_string().into();
            secret
        };
        self.event("DELETED", &secret);
    }

    /// Ends all watches.
    pub fn hang_up(&self) {
        self.lock().watchers.clear();
    }

    pub fn watchers(&self) -> usize {
        self.lock().watchers.iter().filter(|watcher| !watcher.is_closed()).count()
    }
}
