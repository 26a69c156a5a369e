//! What a name in the root directory leads to, and the requests about it.

use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::channel::Reply;
use super::config::MAX_READ_BYTES;
use super::read::ReadRequest;
use super::server::Shared;
use super::{Backend, Readiness};
use crate::sys::fuse::{EntryOut, ReadIn};
use crate::units::{DeviceOffset, DeviceRange};

/// What is served under one name; made by the frontends.
#[derive(Clone)]
pub struct Content(Arc<dyn Served>);

impl Content {
    pub(in crate::frontend) fn new(served: Arc<dyn Served>) -> Self {
        Self(served)
    }

    pub(super) fn served(&self) -> &dyn Served {
        &*self.0
    }
}

/// Answers for the inodes behind one name. They have numbers from 0 on, to which the server adds the first number that
/// the name was given.
pub(in crate::frontend) trait Served: Send + Sync + 'static {
    /// All numbers are lower; at least 1.
    fn number_limit(&self) -> u64;

    /// The inode that the name means.
    fn root(&self) -> u64;

    /// Its type (`DT_*`).
    fn root_type(&self) -> u8;

    /// The answer to a look-up of the name.
    fn root_entry(&self, first: u64) -> EntryOut;

    /// Answers a request, now or later. Must not wait.
    fn handle(&self, request: Request<'_>);
}

/// A request about an inode of a [`Content`].
pub(in crate::frontend) struct Request<'a> {
    /// One of [`crate::sys::fuse::opcode`].
    pub(in crate::frontend) opcode: u32,
    /// The inode, counted from `first`.
    pub(in crate::frontend) number: u64,
    /// The first number that the content has in this connection.
    pub(in crate::frontend) first: u64,
    /// What follows the header.
    pub(in crate::frontend) body: &'a [u8],
    /// The right to answer.
    pub(in crate::frontend) reply: Reply,
    pub(super) shared: &'a Shared,
}

impl Request<'_> {
    /// Answers a READ of a file of `size_bytes` whose bytes begin at `start` of the device.
    pub(in crate::frontend) fn read(self, backend: Arc<dyn Backend>, start: u64, size_bytes: u64) {
        let Self { body, reply, shared, .. } = self;
        let counters = &shared.counters;
        counters.read_arrived();
        let Ok((wanted, _)) = ReadIn::read_from_prefix(body) else {
            counters.read_failed();
            return reply.error(Errno::INVAL);
        };
        let len_bytes = u64::from(wanted.size_bytes.min(MAX_READ_BYTES)).min(size_bytes.saturating_sub(wanted.offset));
        let range = start
            .checked_add(wanted.offset)
            .and_then(|at| DeviceRange::from_len(DeviceOffset::new(at), len_bytes))
            .filter(|range| !range.is_empty());
        let Some(range) = range else { return reply.data(&[]) };
        let mut request = ReadRequest::new(reply, backend, range, Arc::clone(counters));
        if let Err(error) = request.cut() {
            return request.fail(&error);
        }
        if request.ask(&shared.replies) == Readiness::Pending {
            counters.read_pended();
        }
    }
}
