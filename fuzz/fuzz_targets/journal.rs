//! A stream in the Journal Export Format.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vedette_collectors::fuzzing::journal(bytes));
