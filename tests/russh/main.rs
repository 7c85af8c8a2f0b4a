//! One regression test a patch of contrib/russh.
