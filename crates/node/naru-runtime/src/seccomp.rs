//! The default system-call filter.
//!
//! It denies what Docker's default profile denies: what changes the machine, what reaches the
//! kernel's least-tested corners, and what makes namespaces. A list of denials, not of permissions:
//! a new kernel's harmless calls go on working, and the dangerous ones have all been behind
//! capabilities that a container does not have.
//!
//! The instructions are written here, because their order is what a container's start waits for: the kernel tries
//! the filter with every call there is when it is installed, and a search by halves takes a tenth of the time that a
//! list takes. Calls of the x32 interface (bit 30 set) would slip past every comparison, and `clone3` passes its
//! flags in memory where no filter can look, so they "do not exist" and the C library falls back to `clone`.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Denied unless the container was given CAP_SYS_ADMIN, which is pointless without them.
const DENIED_WITHOUT_ADMIN: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

const DENIED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_keyctl,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

const NAMESPACE_FLAGS: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWCGROUP,
];

/// Not in the libc crate: virtual-machine sockets, which reach the hypervisor past every firewall.
const AF_VSOCK: u32 = 40;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// Only the plain Linux personality, and 0xffffffff which asks.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

/// What is done with a call. The kernel takes these arguments as 32 bits, so that is what is looked at: whatever
/// stands in the other half changes nothing.
enum Rule {
    Refuse,
    /// If the argument has any of these bits.
    RefuseBits {
        argument: u32,
        bits: u32,
    },
    /// If the argument is one of these.
    RefuseValues {
        argument: u32,
        values: &'static [u32],
    },
    /// Unless the argument is one of these.
    AllowValues {
        argument: u32,
        values: &'static [u32],
    },
}

/// The filter for a container; `admin` when it was deliberately given CAP_SYS_ADMIN.
pub fn default_filter(admin: bool) -> BpfProgram {
    let lists: &[&[i64]] =
        if admin { &[DENIED, DENIED_HERE] } else { &[DENIED, DENIED_HERE, DENIED_WITHOUT_ADMIN] };
    let denied = lists.iter().flat_map(|it| it.iter());
    let mut rules: BTreeMap<u32, Rule> = denied.map(|call| (*call as u32, Rule::Refuse)).collect();
    if !admin {
        let bits = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | *flag as u32);
        rules.insert(libc::SYS_clone as u32, Rule::RefuseBits { argument: 0, bits });
    }
    rules.insert(libc::SYS_socket as u32, Rule::RefuseValues { argument: 0, values: &[AF_VSOCK] });
    // Typing into the terminal that started us is not a thing a container does.
    rules.insert(libc::SYS_ioctl as u32, Rule::RefuseValues { argument: 1, values: &[TIOCSTI, TIOCLINUX] });
    rules.insert(libc::SYS_personality as u32, Rule::AllowValues { argument: 0, values: PERSONALITIES });
    let mut program = prelude();
    let rules: Vec<(u32, Rule)> = rules.into_iter().collect();
    program.extend(search(&rules));
    program
}

const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERROR: u32 = 0x0005_0000;
const REFUSE: u32 = ERROR | libc::EPERM as u32;

/// Where `struct seccomp_data` has the call's number, the interface, and the lower half of an argument.
const NUMBER: u32 = 0;
const INTERFACE: u32 = 4;
const fn lower_half(argument: u32) -> u32 {
    16 + 8 * argument + if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Another interface's numbers mean other calls, so who uses one is ended.
fn prelude() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    #[cfg(target_arch = "x86_64")]
    const OURS: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const OURS: u32 = 0xc000_00b7;
    vec![
        instruction(LOAD_WORD, 0, 0, INTERFACE),
        instruction(JUMP_EQUAL, 1, 0, OURS),
        instruction(RETURN, 0, 0, KILL),
        instruction(LOAD_WORD, 0, 0, NUMBER),
        instruction(JUMP_GREATER_OR_EQUAL, 1, 0, X32_BIT),
        instruction(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32),
        instruction(RETURN, 0, 0, ERROR | libc::ENOSYS as u32),
    ]
}

/// Finds the number by halves. Rules are sorted.
fn search(rules: &[(u32, Rule)]) -> BpfProgram {
    let [(call, rule)] = rules else {
        let (lower, upper) = rules.split_at(rules.len() / 2);
        let below = search(lower);
        let skipped =
            u8::try_from(below.len()).expect("half of a hundred rules has less than 256 instructions");
        let mut program = vec![instruction(JUMP_GREATER_OR_EQUAL, skipped, 0, upper[0].0)];
        program.extend(below);
        program.extend(search(upper));
        return program;
    };
    let body = decide(rule);
    let length = u8::try_from(body.len()).expect("a rule has a handful of values");
    let mut program = vec![instruction(JUMP_EQUAL, 0, length, *call)];
    program.extend(body);
    program.push(instruction(RETURN, 0, 0, ALLOW));
    program
}

/// Ends with a return, or goes on to the one that allows.
fn decide(rule: &Rule) -> BpfProgram {
    let compare = |argument: u32, values: &[u32], found: u32, otherwise: Option<u32>| {
        let mut program = vec![instruction(LOAD_WORD, 0, 0, lower_half(argument))];
        for value in values {
            program.push(instruction(JUMP_EQUAL, 0, 1, *value));
            program.push(instruction(RETURN, 0, 0, found));
        }
        program.extend(otherwise.map(|it| instruction(RETURN, 0, 0, it)));
        program
    };
    match rule {
        Rule::Refuse => vec![instruction(RETURN, 0, 0, REFUSE)],
        Rule::RefuseBits { argument, bits } => vec![
            instruction(LOAD_WORD, 0, 0, lower_half(*argument)),
            instruction(JUMP_ANY_BIT, 0, 1, *bits),
            instruction(RETURN, 0, 0, REFUSE),
        ],
        Rule::RefuseValues { argument, values } => compare(*argument, values, REFUSE, None),
        Rule::AllowValues { argument, values } => compare(*argument, values, ALLOW, Some(REFUSE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's machine, for what these filters use of it; also how many instructions it took.
    fn run(program: &BpfProgram, number: u32, arguments: [u64; 2]) -> (u32, usize) {
        let load = |at: u32| match at {
            NUMBER => number,
            INTERFACE => program[1].k,
            it => arguments[((it - 16) / 8) as usize] as u32,
        };
        let (mut at, mut word, mut steps) = (0, 0, 0);
        loop {
            let it = &program[at];
            at += 1;
            steps += 1;
            let jump = |is: bool| usize::from(if is { it.jt } else { it.jf });
            match it.code {
                LOAD_WORD => word = load(it.k),
                JUMP_EQUAL => at += jump(word == it.k),
                JUMP_GREATER_OR_EQUAL => at += jump(word >= it.k),
                JUMP_ANY_BIT => at += jump(word & it.k != 0),
                RETURN => return (it.k, steps),
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn every_call_is_answered_by_its_rule_and_soon() {
        for admin in [false, true] {
            let program = default_filter(admin);
            for number in 0..1000u32 {
                let lists: &[&[i64]] = &[DENIED, DENIED_HERE];
                let is_denied = lists.iter().any(|it| it.contains(&i64::from(number)))
                    || !admin && DENIED_WITHOUT_ADMIN.contains(&i64::from(number));
                let (answer, steps) = run(&program, number, [0, 0]);
                let expected = match i64::from(number) {
                    libc::SYS_clone3 => ERROR | libc::ENOSYS as u32,
                    _ if is_denied => REFUSE,
                    _ => ALLOW,
                };
                assert_eq!(answer, expected, "call {number}, admin {admin}");
                assert!(steps < 24, "call {number} takes {steps} instructions");
            }
        }
    }

    #[test]
    fn arguments_are_looked_at_as_the_kernel_takes_them() {
        let program = default_filter(false);
        let check = |call: i64, arguments: [u64; 2], expect: u32| {
            assert_eq!(run(&program, call as u32, arguments).0, expect, "{call} {arguments:x?}");
        };
        const HIGH: u64 = 0xdead_0000_0000;
        check(libc::SYS_clone, [libc::SIGCHLD as u64, 0], ALLOW);
        check(libc::SYS_clone, [libc::CLONE_NEWUSER as u64 | libc::SIGCHLD as u64, 0], REFUSE);
        check(libc::SYS_socket, [u64::from(AF_VSOCK), 0], REFUSE);
        check(libc::SYS_socket, [HIGH | u64::from(AF_VSOCK), 0], REFUSE);
        check(libc::SYS_socket, [libc::AF_INET as u64, 0], ALLOW);
        check(libc::SYS_ioctl, [0, HIGH | u64::from(TIOCSTI)], REFUSE);
        check(libc::SYS_ioctl, [0, u64::from(TIOCLINUX)], REFUSE);
        check(libc::SYS_ioctl, [u64::from(TIOCSTI), 0x5401], ALLOW);
        check(libc::SYS_personality, [0xffff_ffff, 0], ALLOW);
        check(libc::SYS_personality, [0x0040_0000, 0], REFUSE);
        let x32 = 0x4000_0000 | libc::SYS_mount as u32;
        assert_eq!(run(&program, x32, [0, 0]).0, ERROR | libc::ENOSYS as u32);
    }
}
