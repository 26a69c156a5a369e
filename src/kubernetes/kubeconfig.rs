//! Where the API server is, and who we are to it.
//!
//! Format: <https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>. Everything is read again for each
//! connection: tokens and certificates are renewed under the same names.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use url::Url;

use super::KubernetesError;

/// Longest file that is read, in bytes.
const LIMIT_BYTES: u64 = 4 << 20;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What says where the cluster is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A kubeconfig file.
    File(PathBuf),
    /// A pod's service account: `HOST:PORT` of the API server, and the directory with token and certificate authority.
    ServiceAccount {
        /// `HOST:PORT`.
        server: String,
        /// Holds `token` and `ca.crt`.
        dir: PathBuf,
    },
}

impl Source {
    /// The file, if one is named; else `$KUBECONFIG`; else the service account of the pod that this process is in.
    ///
    /// # Errors
    /// [`KubernetesError::NoCluster`].
    pub fn find(kubeconfig: &str) -> Result<Self, KubernetesError> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        if !kubeconfig.is_empty() {
            return Ok(Self::File(PathBuf::from(kubeconfig)));
        }
        // A list of files is merged by others; here the first counts.
        if let Some(file) = variable("KUBECONFIG").and_then(|list| list.split(':').next().map(PathBuf::from)) {
            return Ok(Self::File(file));
        }
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
        let host = host.ok_or(KubernetesError::NoCluster)?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = format!("{host}:{}", port.as_deref().unwrap_or("443"));
        Ok(Self::ServiceAccount { server, dir: PathBuf::from(SERVICE_ACCOUNT_DIR) })
    }

    /// Reads all that a connection takes. Blocks on files.
    pub(super) fn access(&self) -> Result<Access, KubernetesError> {
        match self {
            Self::File(path) => from_file(path),
            Self::ServiceAccount { server, dir } => {
                let server = format!("https://{server}");
                Ok(Access {
                    server: Url::parse(&server).map_err(|error| wrong(dir, format!("{server}: {error}")))?,
                    authorities: Some(read(&dir.join("ca.crt"))?),
                    skip_verify: false,
                    identity: None,
                    token: Some(token(&dir.join("token"))?),
                    proxy: None,
                })
            }
        }
    }
}

/// All that a connection takes.
pub(super) struct Access {
    pub server: Url,
    /// PEM; `None`: the system's.
    pub authorities: Option<Vec<u8>>,
    pub skip_verify: bool,
    /// PEM: certificate and key.
    pub identity: Option<Vec<u8>>,
    pub token: Option<String>,
    pub proxy: Option<Url>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: String,
    clusters: Vec<NamedCluster>,
    contexts: Vec<NamedContext>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    exec: Option<serde::de::IgnoredAny>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde::de::IgnoredAny>,
    username: String,
}

fn wrong(path: &Path, reason: impl Into<String>) -> KubernetesError {
    KubernetesError::Kubeconfig { path: path.to_owned(), reason: reason.into() }
}

fn read(path: &Path) -> Result<Vec<u8>, KubernetesError> {
    use std::io::Read as _;
    let io = |source| KubernetesError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(wrong(path, format!("longer than {LIMIT_BYTES} bytes; is this the right file?")));
    }
    Ok(bytes)
}

fn token(path: &Path) -> Result<String, KubernetesError> {
    let text = String::from_utf8(read(path)?).ok();
    let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    text.ok_or_else(|| wrong(path, "holds no token"))
}

fn from_file(path: &Path) -> Result<Access, KubernetesError> {
    let text = String::from_utf8(read(path)?).map_err(|_| wrong(path, "is no text"))?;
    // The parser's own words quote the file, in which keys and tokens stand.
    let file: File = serde_saphyr::from_str(&text).map_err(|error| {
        let line = error.location().map(|location| format!(" at line {}", location.line())).unwrap_or_default();
        wrong(path, format!("is no kubeconfig file: wrong{line}"))
    })?;
    if file.current_context.is_empty() {
        return Err(wrong(path, "has no current-context; set one: kubectl config use-context NAME"));
    }
    let missing = |what: &str, name: &str| wrong(path, format!("has no {what} {name:?}"));
    let context = file.contexts.into_iter().find(|context| context.name == file.current_context);
    let context = context.ok_or_else(|| missing("context", &file.current_context))?.context;
    let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
    let user = match context.user.as_str() {
        "" => User::default(),
        name => {
            let user = file.users.into_iter().find(|user| user.name == name);
            user.ok_or_else(|| missing("user", name))?.user
        }
    };
    let url = |what: &str, text: &str| {
        Url::parse(text).ok().filter(Url::has_host).ok_or_else(|| wrong(path, format!("its {what} is no URL")))
    };
    let server = url("server", &cluster.server)?;
    if !matches!(server.scheme(), "https" | "http") {
        return Err(wrong(path, "its server is neither https:// nor http://"));
    }
    if !cluster.tls_server_name.is_empty() {
        return Err(wrong(path, "tls-server-name is not supported; name the server by a name of its certificate"));
    }
    let proxy = Some(cluster.proxy_url).filter(|text| !text.is_empty());
    let (identity, token) = who(path, &user)?;
    Ok(Access {
        server,
        authorities: data(path, &cluster.certificate_authority_data, &cluster.certificate_authority)?,
        skip_verify: cluster.insecure_skip_tls_verify,
        identity,
        token,
        proxy: proxy.map(|text| url("proxy-url", &text)).transpose()?,
    })
}

/// Certificate with key, and token.
fn who(path: &Path, user: &User) -> Result<(Option<Vec<u8>>, Option<String>), KubernetesError> {
    let certificate = data(path, &user.client_certificate_data, &user.client_certificate)?;
    let key = data(path, &user.client_key_data, &user.client_key)?;
    let identity = match (certificate, key) {
        (Some(mut certificate), Some(key)) => {
            certificate.push(b'\n');
            certificate.extend(key);
            Some(certificate)
        }
        // A kubelet keeps both in one file, and names it twice; others once.
        (Some(certificate), None) => Some(certificate),
        (None, Some(_)) => return Err(wrong(path, "has a client-key and no client-certificate")),
        (None, None) => None,
    };
    // As with kubectl: the text counts, unless it may be renewed in a file.
    let token = match (user.token_file.as_str(), user.token.as_str()) {
        ("", "") => None,
        ("", token) => Some(token.to_owned()),
        (file, _) => Some(token(&beside(path, file))?),
    };
    if identity.is_none() && token.is_none() {
        let way = match user {
            User { exec: Some(_), .. } => "by a program (exec)",
            User { auth_provider: Some(_), .. } => "by an auth-provider",
            User { username, .. } if !username.is_empty() => "by a password",
            _ => return Ok((None, None)),
        };
        let remedy = "use a service account's token, a tokenFile or a client certificate (docs/KUBERNETES.md)";
        return Err(wrong(path, format!("its user signs in {way}, which is not supported: {remedy}")));
    }
    Ok((identity, token))
}

/// What stands in the file itself, or in the file that it names.
fn data(path: &Path, inline: &str, file: &str) -> Result<Option<Vec<u8>>, KubernetesError> {
    if !inline.is_empty() {
        let compact: String = inline.split_ascii_whitespace().collect();
        let decoded = base64::engine::general_purpose::STANDARD.decode(compact);
        return decoded.map(Some).map_err(|_| wrong(path, "a certificate or key in it is no base64"));
    }
    if file.is_empty() { Ok(None) } else { read(&beside(path, file)).map(Some) }
}

/// Names in a kubeconfig file are relative to it.
fn beside(path: &Path, file: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(file)
}
