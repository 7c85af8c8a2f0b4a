//! mosh, which sends UDP beside SSH: it works where the environment has the address of the
//! machine that its client reached.

use vendetta_tests::Gateway;

#[test]
fn mosh_works_in_a_folder_of_the_gateway_s_own_machine() {
    let gateway = Gateway::builder().host().start();
    gateway.create("box", "provider: host\n");
    let admin = gateway.admin();
    let mosh = admin
        .program("mosh")
        .env("LC_ALL", "C.UTF-8")
        .env("TERM", "xterm")
        .arg(format!("--ssh={}", admin.ssh_command()))
        .args(["box@gateway", "--", "sh"]);
    let mut session = mosh.start_on_terminal(24, 80);
    session.send("echo the answer is $((40 + 2))\n");
    session.expect_stdout(0, "the answer is 42");
    session.send("exit\n");
    session.finish().ok();
}
