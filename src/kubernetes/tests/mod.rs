//! Against an API server of the tests' own, and kubeconfig files good and bad.

mod kubeconfig;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use self::server::{Server, secret, secret_of};
use super::*;
use crate::registry::{ImageRef, Keychain, Wanted};

const PAUSES: Pauses = Pauses { first: Duration::from_millis(1), longest: Duration::from_millis(8) };

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

fn plain(dir: &Path, server: &Server) -> Source {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: main\n\
         clusters:\n- name: here\n  cluster:\n    server: http://{}/prefix/\n\
         contexts:\n- {{name: main, context: {{cluster: here, user: me}}}}\n\
         users:\n- name: me\n  user:\n    tokenFile: token\n",
        server.address
    );
    write(dir, "token", "first\n");
    Source::File(write(dir, "kubeconfig", &text))
}

fn users(secrets: &Secrets, image: &str) -> Vec<String> {
    let image: ImageRef = image.parse().expect("a reference");
    let found = secrets.find(Wanted { image: &image, host: image.host(), is_registry: true });
    found.into_iter().map(|login| login.user).collect()
}

/// Waits until something is so; the limit is only there to end a test that fails.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: never"));
}

/// A watch that ends with the test.
struct Watching(tokio::task::JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn begin(source: Source) -> (Secrets, Watching) {
    let secrets = Secrets::default();
    let watching = Watching(tokio::spawn(watch(source, secrets.clone(), PAUSES)));
    (secrets, watching)
}

#[tokio::test]
async fn secrets_are_listed_page_by_page_and_watched() {
    let (dir, server) = (tempfile::tempdir().expect("a directory"), Server::start().await);
    server.lock().page = 2;
    for n in 0..5 {
        server.put(secret(&format!("s{n}"), &format!("r{n}.io"), "user"));
    }
    let (secrets, _watching) = begin(plain(dir.path(), &server));
    until("listed", || secrets.len() == 5 && server.watchers() == 1).await;
    assert_eq!(users(&secrets, "r4.io/x"), ["user"]);
    assert_eq!(server.lock().asked.iter().filter(|(uri, _)| !uri.contains("watch=")).count(), 3, "three pages");
    assert!(
        server
            .lock()
            .asked
            .iter()
            .all(|(uri, who)| { uri.starts_with("/prefix/api/v1/secrets?") && who.as_deref() == Some("Bearer first") })
    );

    server.put(secret("new", "new.io", "a"));
    until("added", || users(&secrets, "new.io/x") == ["a"]).await;
    server.put(secret("new", "new.io", "b"));
    until("changed", || users(&secrets, "new.io/x") == ["b"]).await;
    server.delete("new");
    until("removed", || users(&secrets, "new.io/x").is_empty()).await;
    // What holds no credentials any more is gone, too; what is broken hides nothing else.
    server.put(secret_of("s0", "{}"));
    server.put(secret_of("s1", "{\"auths\": {\"r1.io\": {\"auth\": \"hunter2\"}}}"));
    server.put(secret_of("s2", "no JSON"));
    server.put(secret("s9", "r9.io", "z"));
    until("broken ones", || secrets.len() == 3 && users(&secrets, "r9.io/x") == ["z"]).await;
    assert_eq!(format!("{secrets:?}"), "(3 secrets)");
}

#[tokio::test]
async fn a_watch_goes_on_where_it_ended_with_a_token_that_is_new() {
    let (dir, server) = (tempfile::tempdir().expect("a directory"), Server::start().await);
    let (secrets, _watching) = begin(plain(dir.path(), &server));
    until("watched", || server.watchers() == 1).await;
    server.put(secret("a", "a.io", "a"));
    until("added", || secrets.len() == 1).await;
    // An event in two pieces, an empty line, a kind that nobody knows, and a bookmark.
    server.send("\n{\"type\":\"TOMORROW\",\"object\":{}}\n{\"type\":\"BOOK");
    server.send("MARK\",\"object\":{\"kind\":\"Secret\",\"metadata\":{\"resourceVersion\":\"77\"}}}\n");
    write(dir.path(), "token", "second");
    server.lock().asked.clear();
    server.hang_up();
    until("watched again", || server.watchers() == 1).await;
    let asked = server.lock().asked.clone();
    assert_eq!(asked.len(), 1, "nothing is listed again: {asked:?}");
    assert!(asked[0].0.contains("resourceVersion=77") && asked[0].1.as_deref() == Some("Bearer second"), "{asked:?}");
    assert_eq!(secrets.len(), 1);
}

#[tokio::test]
async fn what_the_server_has_forgotten_is_listed_again() {
    let (dir, server) = (tempfile::tempdir().expect("a directory"), Server::start().await);
    server.put(secret("a", "a.io", "a"));
    let (secrets, _watching) = begin(plain(dir.path(), &server));
    until("watched", || server.watchers() == 1).await;
    {
        // Nobody hears of this, and its version is too old to be heard of.
        let mut state = server.lock();
        state.secrets.clear();
        state.secrets.insert("b".to_owned(), secret("b", "b.io", "b"));
        state.version = 50;
        state.oldest = 40;
    }
    server.hang_up();
    until("listed again", || users(&secrets, "b.io/x") == ["b"] && users(&secrets, "a.io/x").is_empty()).await;
    until("watched again", || server.watchers() == 1).await;
    // Said by the status of the answer, as some servers do.
    server.lock().refuse = Some((410, "gone"));
    server.hang_up();
    until("refused", || server.lock().asked.iter().filter(|(uri, _)| uri.contains("watch=")).count() > 3).await;
    server.lock().refuse = None;
    until("watched once more", || server.watchers() == 1).await;
    assert_eq!(secrets.len(), 1);
}

#[tokio::test]
async fn a_cluster_that_fails_takes_nothing_away_and_is_asked_again() {
    let (dir, server) = (tempfile::tempdir().expect("a directory"), Server::start().await);
    server.put(secret("a", "a.io", "a"));
    let source = plain(dir.path(), &server);
    // At first there is no file.
    let kubeconfig = dir.path().join("kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).expect("read");
    std::fs::remove_file(&kubeconfig).expect("removed");
    let (secrets, _watching) = begin(source);
    tokio::task::yield_now().await;
    write(dir.path(), "kubeconfig", "users: [");
    write(dir.path(), "kubeconfig", &text);
    until("watched", || server.watchers() == 1 && secrets.len() == 1).await;
    for (status, message) in [(403, "secrets is forbidden"), (500, "etcd"), (401, "Unauthorized")] {
        server.lock().asked.clear();
        server.lock().refuse = Some((status, message));
        server.hang_up();
        until("asked again and again", || server.lock().asked.len() > 3).await;
        assert_eq!(secrets.len(), 1, "what is known stays");
        server.lock().refuse = None;
        until("watched again", || server.watchers() == 1).await;
    }
    // What is no event ends the watch, not the watcher.
    for nonsense in
        ["nonsense\n", "{\"type\":\"ADDED\",\"object\":3}\n", "{\"type\":\"ERROR\",\"object\":{\"code\":500}}\n"]
    {
        let before = server.lock().asked.len();
        server.send(nonsense);
        until("asked again", || server.lock().asked.len() > before && server.watchers() == 1).await;
    }
    server.put(secret("b", "b.io", "b"));
    until("still watched", || users(&secrets, "b.io/x") == ["b"]).await;
}

#[test]
fn errors_say_what_to_do() {
    let status = |status| KubernetesError::Status { url: "https://k/api".into(), status, message: "no".into() };
    assert_eq!(status(500).to_string(), "https://k/api: status 500: no");
    assert!(status(403).to_string().contains("list and watch") && status(401).to_string().contains("not valid"));
    assert!(status(410).is_gone() && !status(409).is_gone());
    assert!(KubernetesError::NoCluster.to_string().contains("credentials.kubeconfig"));
}
