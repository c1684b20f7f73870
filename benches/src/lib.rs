//! Shared by benchmarks and the fault campaign: real processes in a scratch directory, and generators of lines.

#![expect(clippy::disallowed_methods, reason = "scratch files need not be durable")]

pub mod generate;
pub mod numbered;
pub mod peer;
pub mod proxy;
pub mod world;
