//! Credentials from docker's `config.json`: inline, by helper per host, or by the general credential store.
//!
//! Formats: docker/cli `cli/config/configfile`, docker/docker-credential-helpers. The file is read again for every use,
//! so that a `docker login` or a rotated secret counts at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::hosts::Endpoint;
use super::keychain::Wanted;
use super::{ClientConfig, ImageRef, RegistryError};

/// A secret; never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(pub(super) String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// A user and password given for one use.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password; for a user that is empty, an OAuth2 refresh token.
    pub password: Secret,
}

impl Login {
    /// Reads docker's field `auth`: base64 of `USER:PASSWORD`.
    ///
    /// # Errors
    /// What is wrong with it, without a word of it.
    pub fn from_auth(auth: &str) -> Result<Self, &'static str> {
        let engine = base64::engine::GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            base64::engine::GeneralPurposeConfig::new()
                .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
        );
        let decoded = engine.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        let (user, password) = pair.ok_or("the entry's \"auth\" is no base64 of USER:PASSWORD")?;
        Ok(Self { user: user.to_owned(), password: Secret(password.to_owned()) })
    }
}

/// What a registry may be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Credentials {
    /// Nothing is configured for the host.
    Anonymous,
    /// User and password.
    Password { user: String, password: Secret },
    /// An OAuth2 refresh token.
    IdentityToken(Secret),
}

/// Longest `config.json` and longest answer of a helper, in bytes.
const LIMIT_BYTES: u64 = 1 << 20;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DockerConfig {
    pub(super) auths: BTreeMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// The key under which docker files Docker Hub's credentials.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Host part of a key of `auths` or `credHelpers`, with the names of Docker Hub made one.
fn host_of_key(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match rest.split('/').next().unwrap_or(rest) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

fn find<'a, T>(map: &'a BTreeMap<String, T>, host: &str) -> Option<&'a T> {
    map.get(host).or_else(|| map.iter().find(|(key, _)| host_of_key(key) == host_of_key(host)).map(|(_, value)| value))
}

fn trouble(host: &str, reason: String) -> RegistryError {
    RegistryError::Auth { host: host.to_owned(), what: "credentials".to_owned(), reason }
}

impl From<Login> for Credentials {
    fn from(Login { user, password }: Login) -> Self {
        if user.is_empty() { Self::IdentityToken(password) } else { Self::Password { user, password } }
    }
}

/// The credentials to try as number `n`, from 0, with a host; `None` when there are no more. A login that was given for
/// this use is the only one; else what the keychains have comes before docker's configuration, which is always there
/// and may say that there is nothing.
pub(super) async fn candidate(
    config: &ClientConfig,
    host: &Endpoint,
    image: &ImageRef,
    n: usize,
) -> Result<Option<Credentials>, RegistryError> {
    if let Some(login) = config.login.clone().filter(|_| host.is_server) {
        return Ok((n == 0).then(|| login.into()));
    }
    let mut brought = config.keychains.find(Wanted { image, host: &host.authority, is_registry: host.is_server });
    if n < brought.len() {
        return Ok(Some(brought.swap_remove(n).into()));
    }
    if n > brought.len() { Ok(None) } else { lookup(config, &host.authority).await.map(Some) }
}

/// The credentials that docker's configuration has for `host` (`HOST[:PORT]`).
async fn lookup(config: &ClientConfig, host: &str) -> Result<Credentials, RegistryError> {
    let Some(path) = &config.docker_config else { return Ok(Credentials::Anonymous) };
    let Some(docker) = read(path, host).await? else { return Ok(Credentials::Anonymous) };
    if let Some(helper) = find(&docker.cred_helpers, host).filter(|helper| !helper.is_empty()) {
        return ask_helper(config, helper, host).await;
    }
    let stored = find(&docker.auths, host).map(inline).transpose();
    let stored = stored.map_err(|reason| trouble(host, format!("{}: {reason}", path.display())))?;
    if let Some(login) = stored.flatten() {
        return Ok(login.into());
    }
    match &docker.creds_store {
        Some(helper) if !helper.is_empty() => ask_helper(config, helper, host).await,
        _ => Ok(Credentials::Anonymous),
    }
}

async fn read(path: &Path, host: &str) -> Result<Option<DockerConfig>, RegistryError> {
    let io = |source| RegistryError::Io { path: path.to_owned(), source };
    let mut text = Vec::new();
    match tokio::fs::File::open(path).await {
        Ok(file) => file.take(LIMIT_BYTES + 1).read_to_end(&mut text).await.map_err(io)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let (path, remedy) = (path.display(), "make it readable, or set DOCKER_CONFIG to another directory");
            return Err(trouble(host, format!("{path}: {error}; {remedy}")));
        }
    };
    // Neither the file's text nor the parser's excerpt of it may reach an error: they hold secrets.
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        trouble(host, format!("{}: not valid JSON at line {}; run docker login again", path.display(), error.line()))
    })
}

/// Credentials that stand in the entry itself; `None` for the empty ones that docker leaves beside a store. What is wrong
/// is said without a word of it.
pub(super) fn inline(entry: &AuthEntry) -> Result<Option<Login>, &'static str> {
    let filled = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if let Some(token) = filled(&entry.identitytoken) {
        return Ok(Some(Login { user: String::new(), password: Secret(token) }));
    }
    if let (Some(user), Some(password)) = (filled(&entry.username), filled(&entry.password)) {
        return Ok(Some(Login { user, password: Secret(password) }));
    }
    filled(&entry.auth).map(|auth| Login::from_auth(&auth)).transpose()
}

async fn ask_helper(config: &ClientConfig, helper: &str, host: &str) -> Result<Credentials, RegistryError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !helper.chars().all(plain) {
        return Err(trouble(host, "the credential helper's name in docker's config.json holds odd characters".into()));
    }
    let program = format!("docker-credential-{helper}");
    let server = if host_of_key(host) == "docker.io" { DOCKER_HUB_KEY } else { host };
    ask_program(&program, server, host, config.helper_limit).await
}

/// Runs a helper within `limit`. What it prints is never repeated: it may be the secret.
async fn ask_program(program: &str, server: &str, host: &str, limit: Duration) -> Result<Credentials, RegistryError> {
    let (status, output) = tokio::time::timeout(limit, run_helper(program, server))
        .await
        .map_err(|_| trouble(host, format!("{program} gave no answer within {} ms and was killed", limit.as_millis())))?
        .map_err(|error| trouble(host, format!("cannot run {program}: {error}")))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        if text.contains("credentials not found") {
            return Ok(Credentials::Anonymous);
        }
        return Err(trouble(host, format!("{program} failed ({status}); try: echo {server} | {program} get")));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output).map_err(|_| trouble(host, format!("{program} answered no credentials")))?;
    Ok(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(Secret(answer.secret)),
        "" if answer.secret.is_empty() => Credentials::Anonymous,
        _ => Credentials::Password { user: answer.username, password: Secret(answer.secret) },
    })
}

async fn run_helper(program: &str, server: &str) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that answers without reading closes the pipe; its answer still counts.
        match stdin.write_all(format!("{server}\n").as_bytes()).await {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LIMIT_BYTES).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, json: &str) -> ClientConfig {
        let path = dir.join("config.json");
        std::fs::write(&path, json).expect("a config file");
        ClientConfig { docker_config: Some(path), ..ClientConfig::default() }
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.into(), password: Secret(password.into()) }
    }

    #[tokio::test]
    async fn inline_entries_are_found_under_dockers_many_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(
            dir.path(),
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
                "quay.io": {"auth": "cXVheTpwYTpzcw"},
                "https://ghcr.io": {"username": "u", "password": "p"},
                "az.io": {"auth": "eDp5", "identitytoken": "refresh"},
                "127.0.0.1:5000": {}
            }}"#,
        );
        for (host, want) in [
            ("registry-1.docker.io", password("hub", "secret")),
            ("quay.io", password("quay", "pa:ss")),
            ("ghcr.io", password("u", "p")),
            ("az.io", Credentials::IdentityToken(Secret("refresh".into()))),
            ("127.0.0.1:5000", Credentials::Anonymous),
            ("elsewhere.io", Credentials::Anonymous),
        ] {
            assert_eq!(lookup(&config, host).await.expect(host), want, "{host}");
        }
        assert!(!format!("{:?}", password("u", "hidden")).contains("hidden"));
    }

    #[tokio::test]
    async fn a_missing_file_is_anonymous_and_a_broken_one_an_error_without_its_text() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = ClientConfig { docker_config: Some(dir.path().join("none")), ..ClientConfig::default() };
        assert_eq!(lookup(&missing, "a.io").await.expect("anonymous"), Credentials::Anonymous);
        for broken in [r#"{"auths": {"a.io": {"auth": "hunter2"#, r#"{"auths": {"a.io": {"auth": "hunter2"}}}"#] {
            let error = lookup(&config(dir.path(), broken), "a.io").await.expect_err("broken");
            assert!(error.is_auth() && !error.to_string().contains("hunter2"), "{error}");
        }
    }

    /// A script, written by another process: were it written by this one, a test that forks in that moment would keep
    /// it open for writing, and running it would fail (ETXTBSY).
    fn helper(dir: &Path, script: &str) -> String {
        let path = dir.join("docker-credential-test");
        let status = std::process::Command::new("sh")
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", script])
            .arg(&path)
            .status()
            .expect("a shell");
        assert!(status.success());
        path.to_string_lossy().into_owned()
    }

    async fn ask(script: &str, limit_ms: u64) -> Result<Credentials, RegistryError> {
        let dir = tempfile::tempdir().expect("a directory");
        let program = helper(dir.path(), script);
        ask_program(&program, "a.io:443", "a.io:443", Duration::from_millis(limit_ms)).await
    }

    #[tokio::test]
    async fn helpers_get_the_server_and_answer_json() {
        for (script, want) in [
            (r#"read s; printf '{"Username":"%s","Secret":"x"}' "$s""#, password("a.io:443", "x")),
            (r#"echo '{"Username":"<token>","Secret":"r"}'"#, Credentials::IdentityToken(Secret("r".into()))),
            (r#"echo '{"ServerURL":"","Username":"","Secret":""}'"#, Credentials::Anonymous),
            ("echo credentials not found in native keychain; exit 1", Credentials::Anonymous),
        ] {
            assert_eq!(ask(script, 60_000).await.expect(script), want, "{script}");
        }
    }

    #[tokio::test]
    async fn helpers_that_fail_or_hang_are_named_and_never_quoted() {
        for (script, limit_ms, want) in [
            ("echo hunter2; echo hunter2 >&2; exit 3", 60_000, "exit status: 3"),
            ("echo hunter2", 60_000, "no credentials"),
            ("exec sleep 1000", 50, "no answer within 50 ms"),
        ] {
            let error = ask(script, limit_ms).await.expect_err(script);
            let text = error.to_string();
            assert!(error.is_auth() && text.contains("docker-credential-test") && text.contains(want), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn helpers_are_chosen_by_host_and_odd_names_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for (json, want) in [
            (r#"{"credHelpers": {"a.io": "no-such-helper"}}"#, "docker-credential-no-such-helper"),
            (r#"{"credHelpers": {"https://a.io/": "no-such-helper"}, "credsStore": "other"}"#, "no-such-helper"),
            (r#"{"auths": {"a.io": {}}, "credsStore": "no-such-store"}"#, "docker-credential-no-such-store"),
            (r#"{"credsStore": "../../bin/sh"}"#, "odd characters"),
        ] {
            let error = lookup(&config(dir.path(), json), "a.io").await.expect_err(json);
            assert!(error.is_auth() && error.to_string().contains(want), "{error}");
        }
        let other = config(dir.path(), r#"{"credHelpers": {"b.io": "no-such-helper"}}"#);
        assert_eq!(lookup(&other, "a.io").await.expect("not asked"), Credentials::Anonymous);
    }
}
