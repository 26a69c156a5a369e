//! (facade to come)
