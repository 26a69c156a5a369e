//! Options of every command that talks to a registry, and where a password comes from.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::commands::{absolute, text_only};
use crate::config::Registry;
use crate::node::client::{PASSWORD_VARIABLE, USER_VARIABLE};
use crate::node::protocol::{LoginOrder, RegistryAccess};

/// Options about registries. Debug output shows none of the secrets.
#[derive(Args, Clone)]
#[command(next_help_heading = "Registry options")]
pub struct RegistryArgs {
    /// Registries (host or host:port) that are spoken to over plain HTTP. Loopback hosts are by default.
    #[arg(long, global = true, value_name = "HOST")]
    pub insecure: Vec<String>,
    /// Speak plain HTTP to the registry that the image names.
    #[arg(long, global = true)]
    pub plain_http: bool,
    /// Leave the certificates of registries unchecked.
    #[arg(long, short = 'k', global = true)]
    pub skip_verify: bool,
    /// PEM file with certificate authorities to trust besides the system's.
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// PEM file with a certificate to show to registries.
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// PEM file with the key of that certificate; default: in the same file.
    #[arg(long, global = true, value_name = "FILE", requires = "tlscert")]
    pub tlskey: Option<PathBuf>,
    /// Directory with hosts.toml files or certificates of registries, in place of those in the settings.
    #[arg(long, global = true, value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// Registry user. Without the password it is taken from SOCIBLK_REGISTRY_PASSWORD, else asked for, else read from
    /// standard input. Without this option: docker's configuration.
    #[arg(long, short = 'u', global = true, value_name = "USER[:PASSWORD]")]
    pub user: Option<String>,
    /// OAuth2 refresh token, in place of a user.
    #[arg(long, global = true, value_name = "TOKEN", conflicts_with = "user")]
    pub refresh: Option<String>,
}

impl std::fmt::Debug for RegistryArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryArgs").field("insecure", &self.insecure).finish_non_exhaustive()
    }
}

impl RegistryArgs {
    /// Takes secrets out of what `ps` shows of this process.
    pub fn hide_secrets(&self) {
        let password = self.user.as_deref().and_then(|user| user.split_once(':')).map(|(_, password)| password);
        for secret in password.into_iter().chain(self.refresh.as_deref()).filter(|secret| !secret.is_empty()) {
            if let Err(error) = crate::sys::process::hide_argument(secret) {
                tracing::warn!(%error, "a password on the command line cannot be hidden from ps; leave it out and be asked");
            }
        }
    }

    /// For a daemon: what its settings are to be. The rest is about one image, of which a daemon knows nothing yet.
    pub fn settle(&self, settings: &mut Registry) -> anyhow::Result<()> {
        let of_one_image = self.plain_http || self.skip_verify || self.user.is_some() || self.refresh.is_some();
        if of_one_image || self.tlscert.is_some() {
            bail!(
                "--plain-http, --skip-verify, --tlscert, --user and --refresh are for commands that name an image; \
                 for a daemon write hosts.toml files (docs/REGISTRIES.md)"
            );
        }
        let RegistryAccess { insecure, ca_file, hosts_dir, .. } = self.access()?;
        settings.insecure_hosts.extend(insecure);
        settings.ca_files.extend(ca_file);
        if let Some(dir) = hosts_dir {
            settings.config_path = dir.display().to_string();
        }
        Ok(())
    }

    /// What is no secret, with absolute paths: a daemon has another working directory.
    pub fn access(&self) -> anyhow::Result<RegistryAccess> {
        let path = |path: &Option<PathBuf>| {
            let path = path.as_deref().map(absolute).transpose()?;
            path.iter().try_for_each(|path| text_only(path))?;
            anyhow::Ok(path)
        };
        let file = |given: &Option<PathBuf>| {
            let found = path(given)?;
            found.iter().try_for_each(|found| readable(found))?;
            anyhow::Ok(found)
        };
        Ok(RegistryAccess {
            insecure: self.insecure.clone(),
            plain_http: self.plain_http,
            skip_verify: self.skip_verify,
            ca_file: file(&self.tlscacert)?,
            certificate: file(&self.tlscert)?,
            key: file(&self.tlskey)?,
            hosts_dir: file(&self.hosts_dir)?,
            docker_config: docker_config(),
        })
    }

    /// Who to be at the registry; `None`: whoever docker's configuration says.
    pub fn login(&self) -> anyhow::Result<Option<LoginOrder>> {
        let variable = |name: &str| match std::env::var(name) {
            Ok(text) if !text.is_empty() => Ok(Some(text)),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => bail!("the environment variable {name} is not valid UTF-8"),
        };
        if let Some(token) = &self.refresh {
            return Ok(Some(LoginOrder { user: String::new(), password: token.clone() }));
        }
        let Some(given) = self.user.clone().map_or_else(|| variable(USER_VARIABLE), |user| Ok(Some(user)))? else {
            return Ok(None);
        };
        let (user, password) = match given.split_once(':') {
            Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
            None => (given, None),
        };
        if user.is_empty() {
            bail!("--user names no user; write USER or USER:PASSWORD");
        }
        let password = match password {
            Some(password) => password,
            None => match variable(PASSWORD_VARIABLE)? {
                Some(password) => password,
                None => ask_password(&user)?,
            },
        };
        Ok(Some(LoginOrder { user, password }))
    }
}

fn readable(path: &Path) -> anyhow::Result<()> {
    std::fs::File::open(path).map(drop).with_context(|| path.display().to_string())
}

/// One line, without showing it where somebody types it.
fn ask_password(user: &str) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    let read = if stdin.is_terminal() {
        let mut terminal = std::io::stderr();
        write!(terminal, "Password of {user}: ").and_then(|()| terminal.flush()).context("asking for the password")?;
        let read = crate::sys::process::without_echo(&stdin, || stdin.lock().read_line(&mut line));
        // The user's own line end was not shown.
        let _ = writeln!(terminal);
        read
    } else {
        stdin.lock().read_line(&mut line)
    };
    read.context("reading the password from standard input")?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.contains('\u{3}') {
        bail!("interrupted");
    }
    if password.is_empty() {
        bail!(
            "no password for {user}: write it on standard input, set {PASSWORD_VARIABLE}, or leave out --user to use docker's configuration"
        );
    }
    Ok(password.to_owned())
}

/// Directory of the caller's docker configuration. Only its path goes to the daemon, never what is in it.
fn docker_config() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    dir.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"))).filter(|d| d.is_absolute())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    fn args(line: &str) -> super::RegistryArgs {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}")).global.registry
    }

    #[test]
    fn logins_come_from_the_command_line_and_are_never_shown() {
        let given = args("sociblk mount a/b /mnt --user me:hunter2:more -k --plain-http");
        assert!(given.skip_verify && given.plain_http);
        let login = given.login().expect("complete").expect("a login");
        assert_eq!((login.user.as_str(), login.password.as_str()), ("me", "hunter2:more"));
        let token = args("sociblk --refresh hunter2 mount a/b /mnt").login().expect("complete").expect("a login");
        assert_eq!((token.user.as_str(), token.password.as_str()), ("", "hunter2"));
        assert!(!format!("{given:?} {login:?}").contains("hunter2"));
        let cli = Cli::try_parse_from(["sociblk", "ls", "-u", "me:hunter2"]).expect("a command");
        assert!(!format!("{cli:?}").contains("hunter2"));
        assert!(args("sociblk ls -u :x").login().is_err());
    }

    #[test]
    fn files_are_made_absolute_and_must_exist() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("ca.pem");
        let missing = args(&format!("sociblk ls --tlscacert {}", file.display())).access().expect_err("missing");
        assert!(missing.to_string().contains("ca.pem"), "{missing}");
        std::fs::write(&file, "").expect("a file");
        let line =
            format!("sociblk ls --tlscert {0} --tlskey {0} --hosts-dir {1}", file.display(), dir.path().display());
        let access = args(&line).access().expect("readable");
        assert_eq!((access.certificate, access.key), (Some(file.clone()), Some(file)));
        assert_eq!(access.hosts_dir.as_deref(), Some(dir.path()));
        assert!(Cli::try_parse_from(["sociblk", "ls", "--tlskey", "x"]).is_err());
    }

    #[test]
    fn a_daemon_takes_what_is_for_every_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut settings = crate::config::Registry::default();
        let line = format!("sociblk daemon run --insecure a:1 --hosts-dir {}", dir.path().display());
        args(&line).settle(&mut settings).expect("settings");
        assert_eq!(
            (settings.insecure_hosts, settings.config_path),
            (vec!["a:1".to_owned()], dir.path().display().to_string())
        );
        let mut settings = crate::config::Registry::default();
        assert!(args("sociblk daemon run --user a:b").settle(&mut settings).is_err());
    }
}
