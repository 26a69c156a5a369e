//! Connections, request heads, and which resource a path names.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::answer::{Answer, send};
use super::{Auth, Fault, Inner, MANIFEST, Manifest, Request, State};
use crate::units::Digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) fn run(
    state: &Arc<State>,
    registry: std::net::TcpListener,
    storage: std::net::TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for (listener, is_storage) in [(registry, false), (storage, true)] {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener within the runtime");
            let state = Arc::clone(state);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(connection(Arc::clone(&state), stream, is_storage));
                }
            });
        }
        // An error means that the owner is gone, which is the same as a stop.
        drop(stopped.wait_for(|stop| *stop).await);
    });
    // Dropping the runtime drops all connections, stalled ones too.
}

struct Incoming {
    request: Request,
    body: Bytes,
    content_type: String,
    if_match: Option<String>,
    if_none_match: Option<String>,
    fault: Option<Fault>,
}

async fn connection(state: Arc<State>, stream: TcpStream, storage: bool) {
    drop(stream.set_nodelay(true));
    let connection = {
        let mut inner = state.lock();
        inner.connections += 1;
        inner.connections
    };
    let mut stream = BufReader::new(stream);
    if stream.fill_buf().await.is_ok_and(|bytes| bytes.first() == Some(&TLS_HANDSHAKE)) {
        return refuse_tls(stream).await;
    }
    while let Some(mut incoming) = read_request(&state, &mut stream, storage, connection).await {
        let fault = incoming.fault.take();
        // What is refused or lost is not stored either.
        let stays_out = incoming.request.method != "GET" && fault.is_some();
        let answer = if stays_out {
            Answer::status(500)
        } else {
            let mut inner = state.lock();
            respond(&state, &mut inner, &incoming)
        };
        if !send(stream.get_mut(), &incoming.request, answer, fault).await {
            return;
        }
    }
}

/// First byte of a TLS connection (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Answers a TLS client in plain HTTP, as web servers do, and waits until it is gone: closing with its bytes unread would
/// reset the connection and lose the answer.
async fn refuse_tls(mut stream: BufReader<TcpStream>) {
    drop(stream.get_mut().write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await);
    drop(stream.get_mut().shutdown().await);
    drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
}

async fn read_request(
    state: &State,
    stream: &mut BufReader<TcpStream>,
    storage: bool,
    connection: u64,
) -> Option<Incoming> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        range: None,
        authorization: None,
        storage,
        connection,
    };
    let (mut length, mut content_type) = (0, String::new());
    let (mut if_match, mut if_none_match) = (None, None);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value),
            "authorization" => request.authorization = Some(value),
            "content-length" => length = value.parse().ok()?,
            "content-type" => content_type = value,
            "if-match" => if_match = Some(value),
            "if-none-match" => if_none_match = Some(value),
            _ => {}
        }
    }
    let fault = {
        let mut inner = state.lock();
        inner.requests.push(request.clone());
        take_fault(&mut inner, &request)
    };
    if let Some(Fault::DropUploadAfter(bytes)) = fault {
        let mut part = vec![0; length.min(usize::try_from(bytes).unwrap_or(usize::MAX))];
        stream.read_exact(&mut part).await.ok()?;
        return None;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Incoming { request, body: body.into(), content_type, if_match, if_none_match, fault })
}

fn take_fault(inner: &mut Inner, request: &Request) -> Option<Fault> {
    let rule = inner.rules.iter_mut().find(|rule| {
        rule.left > 0
            && rule.method == request.method
            && request.path.contains(&rule.path_contains)
            && rule.storage.is_none_or(|storage| storage == request.storage)
    })?;
    if rule.skip > 0 {
        rule.skip -= 1;
        return None;
    }
    rule.left -= 1;
    Some(rule.fault.clone())
}

fn respond(state: &State, inner: &mut Inner, incoming: &Incoming) -> Answer {
    let request = &incoming.request;
    if request.path == "/token" {
        return token(inner, incoming);
    }
    if request.storage {
        return match request.path.strip_prefix("/storage/").and_then(|hex| format!("sha256:{hex}").parse().ok()) {
            Some(digest) => blob(inner, &digest),
            None => Answer::status(404),
        };
    }
    if let Some(refusal) = refuse(state, inner, request) {
        return refusal;
    }
    let Some(rest) = request.path.strip_prefix("/v2/") else { return Answer::status(404) };
    if rest.is_empty() {
        return Answer::status(200);
    }
    for (kind, handle) in [
        ("/blobs/uploads/", upload as fn(&State, &mut Inner, &Incoming, &str, &str) -> Answer),
        ("/blobs/", get_blob),
        ("/manifests/", manifest),
        ("/referrers/", referrers),
    ] {
        if let Some((repository, name)) = rest.rsplit_once(kind) {
            return handle(state, inner, incoming, repository, name);
        }
    }
    Answer::status(404)
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn token(inner: &mut Inner, incoming: &Incoming) -> Answer {
    let Auth::Bearer { account, uses, .. } = inner.auth.clone() else { return Answer::status(404) };
    let refresh = String::from_utf8_lossy(&incoming.body).contains("grant_type=refresh_token");
    if let Some((user, password)) = account {
        let by_refresh =
            refresh && String::from_utf8_lossy(&incoming.body).contains(&format!("refresh_token={password}"));
        if !by_refresh && incoming.request.authorization != Some(basic(&user, &password)) {
            return Answer::status(401);
        }
    }
    inner.tokens_issued += 1;
    let token = format!("token-{}", inner.tokens_issued);
    inner.tokens.insert(token.clone(), uses);
    let key = if refresh { "access_token" } else { "token" };
    Answer::new(
        200,
        "application/json",
        serde_json::json!({key: token, "expires_in": inner.token_lifetime_s}).to_string(),
    )
}

fn refuse(state: &State, inner: &mut Inner, request: &Request) -> Option<Answer> {
    match inner.auth.clone() {
        Auth::Open => None,
        Auth::Basic { user, password } => (request.authorization != Some(basic(&user, &password)))
            .then(|| Answer::status(401).header("WWW-Authenticate", "Basic realm=\"test\"")),
        Auth::Bearer { refusal, .. } => {
            let given = request.authorization.as_deref().and_then(|a| a.strip_prefix("Bearer "));
            if let Some(left) = given.and_then(|token| inner.tokens.get_mut(token)).filter(|left| **left > 0) {
                *left -= 1;
                return None;
            }
            let challenge = format!(
                "Bearer realm=\"http://{}/token\",service=\"test, quoted\",error=\"invalid_token\"",
                state.host
            );
            Some(match given {
                Some(_) if refusal != 401 => Answer::status(refusal),
                _ => Answer::status(401).header("WWW-Authenticate", &challenge),
            })
        }
    }
}

fn blob(inner: &Inner, digest: &Digest) -> Answer {
    match inner.blobs.get(digest) {
        Some(bytes) => Answer::new(200, "application/octet-stream", bytes.clone()).ranged(),
        None => Answer::status(404),
    }
}

fn get_blob(state: &State, inner: &mut Inner, incoming: &Incoming, repository: &str, name: &str) -> Answer {
    let Ok(digest) = name.parse::<Digest>() else { return Answer::status(400) };
    if inner.owned.as_ref().is_some_and(|owned| !owned.contains(&(repository.to_owned(), digest))) {
        return Answer::status(404);
    }
    if inner.redirect_blobs && incoming.request.method == "GET" {
        let location = format!("http://{}/storage/{}?signature=secret", state.storage_host, digest.hex());
        return Answer::status(307).header("Location", &location);
    }
    blob(inner, &digest)
}

fn manifest(_: &State, inner: &mut Inner, incoming: &Incoming, repository: &str, name: &str) -> Answer {
    if incoming.request.method == "PUT" {
        let digest = Digest::of(&incoming.body);
        let known = |inner: &Inner, name: &str| {
            let found = inner.manifests.get(&(repository.to_owned(), name.to_owned()));
            found.map(|found| format!("\"{}\"", Digest::of(&found.bytes)))
        };
        if inner.conditional_writes {
            let now = known(inner, name);
            let unmet = incoming.if_match.as_ref().is_some_and(|wanted| now.as_ref() != Some(wanted))
                || (incoming.if_none_match.as_deref() == Some("*") && now.is_some());
            if unmet {
                return Answer::status(412);
            }
        }
        let document: serde_json::Value = serde_json::from_slice(&incoming.body).unwrap_or_default();
        if let Some(owned) = &inner.owned {
            let digests = |key: &str| {
                let list = document.get(key).and_then(|list| list.as_array()).cloned().unwrap_or_default();
                list.into_iter().filter_map(|entry| Some(entry.get("digest")?.as_str()?.to_owned())).collect::<Vec<_>>()
            };
            let config = document.pointer("/config/digest").and_then(|d| d.as_str()).map(str::to_owned);
            let has_blob = |text: &String| {
                text.parse().is_ok_and(|digest: Digest| owned.contains(&(repository.to_owned(), digest)))
            };
            let whole = digests("layers").iter().chain(&config).all(has_blob)
                && digests("manifests").iter().all(|name| known(inner, name).is_some());
            if !whole {
                let body = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"a part is missing"}]}"#;
                return Answer::new(400, "application/json", body);
            }
        }
        let manifest = Manifest { media_type: incoming.content_type.clone(), bytes: incoming.body.clone() };
        for reference in [name.to_owned(), digest.to_string()] {
            inner.manifests.insert((repository.to_owned(), reference), manifest.clone());
        }
        let answer = Answer::status(201).header("Docker-Content-Digest", &digest.to_string());
        return match document.pointer("/subject/digest").and_then(|d| d.as_str()) {
            Some(subject) if inner.referrers_api => answer.header("OCI-Subject", subject),
            _ => answer,
        };
    }
    match inner.manifests.get(&(repository.to_owned(), name.to_owned())) {
        Some(found) => Answer::new(200, &found.media_type, found.bytes.clone())
            .header("Docker-Content-Digest", &Digest::of(&found.bytes).to_string()),
        None => Answer::new(404, "application/json", r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#),
    }
}

fn referrers(_: &State, inner: &mut Inner, incoming: &Incoming, repository: &str, name: &str) -> Answer {
    if !inner.referrers_api {
        return Answer::status(404);
    }
    let wanted = url::form_urlencoded::parse(incoming.request.query.as_bytes())
        .find_map(|(key, value)| (key == "artifactType").then(|| value.into_owned()));
    let mut found = Vec::new();
    for ((repo, reference), manifest) in &inner.manifests {
        if repo != repository || !reference.starts_with("sha256:") {
            continue;
        }
        let document: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        let text = |pointer: &str| document.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let kind = text("/config/mediaType");
        if text("/subject/digest") == name && wanted.as_ref().is_none_or(|w| *w == kind) {
            let mut listed = serde_json::json!({
                "mediaType": MANIFEST, "digest": reference, "size": manifest.bytes.len(), "artifactType": kind,
            });
            if let Some(annotations) = document.get("annotations") {
                listed["annotations"] = annotations.clone();
            }
            found.push(listed);
        }
    }
    found.sort_by_key(ToString::to_string);
    let document = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": found});
    Answer::new(200, INDEX, document.to_string()).header("OCI-Filters-Applied", "artifactType")
}

fn upload(_: &State, inner: &mut Inner, incoming: &Incoming, repository: &str, _name: &str) -> Answer {
    if incoming.request.method == "POST" {
        let query = |wanted: &str| {
            url::form_urlencoded::parse(incoming.request.query.as_bytes())
                .find_map(|(key, value)| (key == wanted).then(|| value.into_owned()))
        };
        if let (Some(owned), Some(from), Some(digest)) = (&mut inner.owned, query("from"), query("mount"))
            && let Ok(digest) = digest.parse::<Digest>()
            && owned.contains(&(from, digest))
        {
            owned.insert((repository.to_owned(), digest));
            return Answer::status(201);
        }
        return Answer::status(202).header("Location", &format!("/v2/{repository}/blobs/uploads/1?state=open"));
    }
    let digest = url::form_urlencoded::parse(incoming.request.query.as_bytes())
        .find_map(|(key, value)| (key == "digest").then(|| value.into_owned()));
    let actual = Digest::of(&incoming.body);
    if digest != Some(actual.to_string()) {
        return Answer::status(400);
    }
    if let Some(owned) = &mut inner.owned {
        owned.insert((repository.to_owned(), actual));
    }
    inner.blobs.insert(actual, incoming.body.clone());
    Answer::status(201)
}
