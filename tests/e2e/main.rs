//! The promises, each as a scenario with the real gateway, a real
//! container and the real OpenSSH clients. A module is a topic.

mod session;
