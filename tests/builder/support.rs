//! The real program as a service beside a registry, and what registries send to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sociblk::testkit::registry::TestRegistry;
use sociblk::units::Digest;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Far more than any test takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// A gzip layer with one file that is like no other's.
pub fn layer(seed: u64) -> (Vec<u8>, Digest) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes: Vec<u8> = (0..20_000)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()[3]
        })
        .collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, format!("file-{seed}"), bytes.as_slice()).expect("memory");
    let tar = tar.into_inner().expect("memory");
    let diff_id = Digest::of(&tar);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    gzip.write_all(&tar).expect("memory");
    (gzip.finish().expect("memory"), diff_id)
}

/// An image in the registry.
#[derive(Clone, Debug)]
pub struct Pushed {
    pub repository: String,
    pub tag: String,
    pub digest: Digest,
}

pub fn put(registry: &TestRegistry, repository: &str, tag: &str, seed: u64) -> Pushed {
    let (blob, diff_id) = layer(seed);
    let digest = registry.put_image(repository, tag, &[(&blob, diff_id)]);
    Pushed { repository: repository.to_owned(), tag: tag.to_owned(), digest }
}

impl Pushed {
    /// The event that the registry sends.
    pub fn event(&self, registry: &TestRegistry) -> Value {
        json!({
            "action": "push", "request": {"host": registry.host()},
            "target": {
                "mediaType": OCI_MANIFEST, "digest": self.digest.to_string(), "repository": self.repository, "tag": self.tag,
            },
        })
    }
}

/// `sociblk serve-index`, killed when it is dropped.
pub struct Service {
    child: Child,
    address: String,
}

impl Service {
    pub fn start(root: &Path, settings: &str) -> Self {
        let config = root.join("config.toml");
        let text =
            format!("[registry]\nconfig_path = \"\"\n[builder]\nmin_layer_size = 0\nspan_size = 4096\n{settings}");
        std::fs::write(&config, text).expect("written");
        let mut child = command(root)
            .args(["serve-index", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        out.read_line(&mut line).expect("the address");
        let address = line.trim().strip_prefix("listening on ").expect("the address").to_owned();
        Self { child, address }
    }

    /// Sends one request; `None` when the service is gone.
    pub fn ask(&self, line: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// Whether the service answered that it has them.
    pub fn notify(&self, events: &[Value]) -> bool {
        let body = json!({ "events": events }).to_string();
        self.ask("POST /v1/notifications/distribution", &body).is_some_and(|(status, _)| status == 202)
    }

    pub fn status(&self, query: &str) -> Value {
        let (status, body) = self.ask(&format!("GET /v1/jobs{query}"), "").expect("an answer");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    pub fn count(&self, state: &str) -> u64 {
        self.status("?limit=0")["counts"][state].as_u64().expect("a count")
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Waits for its end; whether it was a good one.
    pub fn ends(&mut self) -> bool {
        self.child.wait().expect("its status").success()
    }

    /// SIGTERM; whether it ended well.
    pub fn stop(&mut self) -> bool {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).expect("a process of ours");
        self.ends()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, without what the machine's user has set.
pub fn command(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sociblk"));
    command
        .arg("--root")
        .arg(root)
        .env("DOCKER_CONFIG", root)
        .env_remove("SOCIBLK_LOG")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("SOCIBLK_BUILDER_TOKEN");
    command
}

/// Looks again and again until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// In an order that only the seed decides.
pub fn shuffled<T>(mut items: Vec<T>, seed: u64) -> Vec<T> {
    let mut random = seed | 1;
    for at in (1..items.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        items.swap(at, usize::try_from(random % (at as u64 + 1)).expect("small"));
    }
    items
}

/// SOCI indexes in a repository: their digests and the images that they belong to.
pub fn indexes(registry: &TestRegistry, repository: &str) -> Vec<(Digest, Digest)> {
    let parsed = |name: &String| {
        let digest: Digest = name.parse().ok()?;
        let document: Value = serde_json::from_slice(&registry.manifest(repository, name)?).ok()?;
        let kind = document.pointer("/config/mediaType")?.as_str()?;
        let is_index = kind == "application/vnd.amazon.soci.index.v1+json";
        let subject = document.pointer("/subject/digest")?.as_str()?.parse().ok()?;
        is_index.then_some((digest, subject))
    };
    registry.manifest_names(repository).iter().filter_map(parsed).collect()
}

/// How often a manifest was put under this name.
pub fn puts(registry: &TestRegistry, repository: &str, name: &str) -> usize {
    let path = format!("/v2/{repository}/manifests/{name}");
    registry.requests().iter().filter(|request| request.method == "PUT" && request.path == path).count()
}
