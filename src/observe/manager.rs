//! What a service manager is told of this process (sd_notify(3)).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Requests are answered from now on.
pub const READY: &str = "READY=1";
/// The process is about to end.
pub const STOPPING: &str = "STOPPING=1";
/// The process still does its work.
pub const ALIVE: &str = "WATCHDOG=1";

/// Tells the service manager: one datagram to the socket in `NOTIFY_SOCKET`, whose name may be abstract. Without that
/// variable there is nobody to tell.
pub fn tell(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    let told = (|| {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&name)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)
    })();
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told {state}");
    }
}

/// How often [`ALIVE`] is to be told: half of what the manager waits (sd_watchdog_enabled(3)). `None`: it does not wait.
#[must_use]
pub fn alive_every() -> Option<Duration> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
        return None;
    }
    number("WATCHDOG_USEC").filter(|limit| *limit > 0).map(|limit| Duration::from_micros(limit / 2))
}
