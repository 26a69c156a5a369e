//! The places between two changes on disk. In tests a process can be made to die at any of them.

use crate::soci::SociError;

/// A place at which a crash must cost nothing but what was under way.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "fails in tests")]
pub(super) fn step(_name: &'static str) -> Result<(), SociError> {
    Ok(())
}

#[cfg(test)]
pub(super) use self::testing::step;

#[cfg(test)]
pub(super) mod testing {
    use std::cell::Cell;
    use std::path::PathBuf;

    use super::SociError;

    /// What happens at a step.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum At {
        /// The operation ends with an error.
        Fail,
        /// The process ends, as by SIGKILL: nothing is tidied up.
        Die,
    }

    thread_local! {
        static PLAN: Cell<Option<(usize, At)>> = const { Cell::new(None) };
    }

    /// Lets the thread's `n`th step from now, counted from 0, go wrong.
    pub fn plan(n: usize, what: At) {
        PLAN.set(Some((n, what)));
    }

    /// Whether a planned failure has not been reached; there is none afterwards.
    pub fn unreached() -> bool {
        PLAN.take().is_some()
    }

    pub(in crate::soci::store) fn step(name: &'static str) -> Result<(), SociError> {
        match PLAN.get() {
            None => Ok(()),
            Some((0, At::Die)) => std::process::abort(),
            Some((0, At::Fail)) => {
                PLAN.set(None);
                Err(SociError::Store { path: PathBuf::from(name), source: std::io::Error::other("planned") })
            }
            Some((n, what)) => {
                PLAN.set(Some((n - 1, what)));
                Ok(())
            }
        }
    }
}
