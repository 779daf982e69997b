//! The commands, a file each.

pub mod api;
pub mod build;
pub mod check;
pub mod ci;
pub mod compose;
pub mod connect;
pub mod demo;
pub mod destroy;
pub mod df;
pub mod dora;
pub mod exec;
pub mod hook;
pub mod image;
pub mod job;
pub mod load;
pub mod logs;
pub mod oci;
pub mod pr;
pub mod rollback;
pub mod secret;
pub mod ssh;
pub mod status;
pub mod top;
pub mod trace;
pub mod upstream;
