//! What other processes, and files after a crash, get to see of this one.

use std::ffi::CStr;
use std::fs::{File, read_to_string};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

/// The program of this process, for starting it once more: the very same, also when its file was replaced or removed since, as
/// an update does (proc(5)).
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Names this process as people know it: one that was started by [`OWN_PROGRAM`] would be called `exe`.
pub fn take_name(name: &CStr) {
    if let Err(error) = rustix::thread::set_name(name) {
        tracing::debug!(%error, "this process has no name");
    }
}

/// Keeps the kernel from writing this process's memory to a core file, and other processes of the same user from
/// reading it (prctl(2), `PR_SET_DUMPABLE`). Unlike a limit on the size of core files it also holds where those go to a
/// program (core(5)). Programs that this one starts are not concerned.
pub fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps cannot be forbidden: a crash may write passwords to a file");
    }
}

/// From here on Ctrl-C and its like come too late: this process ends by itself, with a status that can be trusted. For
/// the last step of something that another process keeps or undoes. Programs started from here inherit it.
pub fn ignore_termination() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: signal(2) has no memory preconditions; SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// SIGTERM ends this process again, after [`ignore_termination`].
pub fn heed_termination() {
    // SAFETY: signal(2) has no memory preconditions; SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
}

/// Overwrites `secret` in the arguments of this process as the kernel shows them to others (proc(5),
/// `/proc/PID/cmdline`, and `arg_start` and `arg_end` of `/proc/PID/stat`). What was parsed from them stays.
///
/// # Errors
/// When `/proc` is not what it should be, or this process may not write its own memory.
pub fn hide_argument(secret: &str) -> io::Result<()> {
    let odd = || io::Error::other("/proc/self/stat has no arguments");
    let stat = read_to_string("/proc/self/stat")?;
    // The second field is the program's name in brackets, in which anything may stand. Counted from 1: arg_start is
    // field 48, and the first one behind the bracket is field 3.
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or_else(odd)?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok()).ok_or_else(odd);
    let (start, end) = (field(48)?, field(49)?);
    let memory = File::options().read(true).write(true).open("/proc/self/mem")?;
    let mut arguments = vec![0; usize::try_from(end.saturating_sub(start)).map_err(|_| odd())?];
    memory.read_exact_at(&mut arguments, start)?;
    let secret = secret.as_bytes();
    if secret.is_empty() {
        return Ok(());
    }
    let mut at = 0;
    while let Some(found) = arguments.get(at..).and_then(|rest| rest.windows(secret.len()).position(|w| w == secret)) {
        at += found;
        memory.write_all_at(&vec![b'*'; secret.len()], start + at as u64)?;
        at += secret.len();
    }
    Ok(())
}

/// Runs `read` while the terminal does not show what is typed, and Ctrl-C is a character as any other.
///
/// # Errors
/// What `read` says, or the terminal.
pub fn without_echo<T>(terminal: impl AsFd, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: a termios is numbers only, for which all zeros are a value; the descriptor is borrowed and open;
    // tcgetattr(3) writes a whole termios or fails.
    let before = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(fd, &raw mut settings) != 0 {
            return Err(io::Error::last_os_error());
        }
        settings
    };
    let mut silent = before;
    // As getpass(3) does: a Ctrl-C must not end the process while nothing is shown.
    silent.c_lflag &= !(libc::ECHO | libc::ISIG);
    // SAFETY: an open descriptor and a termios that tcgetattr filled in; tcsetattr(3) only reads it.
    if unsafe { libc::tcsetattr(fd, libc::TCSAFLUSH, &raw const silent) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let done = read();
    // SAFETY: as before.
    unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const before) };
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hiding_what_is_no_argument_changes_nothing() {
        let before = std::fs::read("/proc/self/cmdline").expect("arguments");
        hide_argument("no-such-argument-was-given").expect("readable");
        assert_eq!(std::fs::read("/proc/self/cmdline").expect("arguments"), before);
    }
}
