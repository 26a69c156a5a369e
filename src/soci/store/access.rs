//! Asking and changing the database; making it anew when it is absent or damaged.

use std::sync::PoisonError;

use rusqlite::{Connection, TransactionBehavior};

use super::database::{Database, Identity, Opened, Trouble};
use super::layout::Locked;
use super::{Store, rebuild, steps::step};
use crate::soci::SociError;

impl Store {
    /// Asks the database.
    pub(super) fn query<T>(&self, ask: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<T, SociError> {
        self.with(None, &|connection| ask(connection))
    }

    /// Changes the database, in one transaction.
    pub(super) fn change<T>(
        &self,
        lock: &Locked,
        change: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SociError> {
        self.with(Some(lock), &|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = change(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    fn with<T>(
        &self,
        lock: Option<&Locked>,
        run: &dyn Fn(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SociError> {
        let database = &self.inner.database;
        let mut repairs = 0;
        loop {
            let (trouble, seen) = {
                let mut slot = self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner);
                match run_on(database, &mut slot, run) {
                    Ok(value) => return Ok(value),
                    Err(trouble) => {
                        let seen = database.identity();
                        if !matches!(trouble, Trouble::Sql(_)) {
                            *slot = None;
                        }
                        (trouble, seen)
                    }
                }
            };
            // Once for what is found at opening, once for what a statement finds; more often it would not help.
            if repairs == 2 || matches!(trouble, Trouble::Sql(_) | Trouble::Later(_)) {
                return Err(database.describe(trouble));
            }
            repairs += 1;
            let own;
            let lock = match lock {
                Some(lock) => lock,
                None => {
                    own = self.inner.layout.lock()?;
                    &own
                }
            };
            self.repair(lock, trouble, seen)?;
        }
    }

    /// Makes the database when it is absent, or damaged; `seen` is the file that was found so. Another process may have
    /// done it while this one waited for the lock.
    fn repair(&self, lock: &Locked, trouble: Trouble, seen: Option<Identity>) -> Result<(), SociError> {
        let database = &self.inner.database;
        let now = match trouble {
            Trouble::Damaged(reason) if database.identity() == seen => Err(Trouble::Damaged(reason)),
            _ => database.open(),
        };
        let opened = match now {
            Ok(opened) => opened,
            Err(trouble @ (Trouble::Absent | Trouble::Damaged(_))) => {
                if let Trouble::Damaged(reason) = trouble {
                    database.set_aside(lock)?;
                    tracing::warn!(
                        "the database {} is damaged ({reason}); it is now {}, and a new one is made from the store",
                        database.path.display(),
                        database.aside_path().display()
                    );
                }
                step("repair: set aside")?;
                let found = rebuild::scan(&self.inner.layout)?;
                database.create(lock, |db| {
                    rebuild::fill(db, &found).map_err(|e| database.describe(e.into()))?;
                    step("repair: filled")
                })?
            }
            Err(trouble) => return Err(database.describe(trouble)),
        };
        *self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(())
    }
}

fn run_on<T>(
    database: &Database,
    slot: &mut Option<Opened>,
    run: &dyn Fn(&mut Connection) -> rusqlite::Result<T>,
) -> Result<T, Trouble> {
    if let Some(old) = slot.take() {
        // A file that another process has set aside is not written to any more.
        *slot = Some(old).filter(|old| database.is_current(old));
    }
    let opened = match slot {
        Some(opened) => opened,
        None => slot.insert(database.open()?),
    };
    Ok(run(&mut opened.connection)?)
}
