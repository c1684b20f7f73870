//! An ELF core, and the notes of one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vedette_collectors::fuzzing::core(bytes));
