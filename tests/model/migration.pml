/* The protocol by which a fleet moves a topic from one broker to another, for spin to explore to exhaustion.
 *
 * A transition stands for one thing that a client, a broker or the operator does at once, and the comment of
 * each names the C++ function that it stands for (Topic and guards: include/mq/migration/, Dispatcher:
 * include/mq/runtime/). The conditions and effects are C functions, which see the state as `now`.
 *
 * The macros; run.sh says which configurations are checked:
 *
 *   P N G M            producers (1 or 2), messages of each, groups, members of each group
 *   ORDER              order = "key": one key for each producer
 *   POSITIONS          brokers tell what is left of what was there at a moment (RabbitMQ, Kafka, memory);
 *                      otherwise only that nothing is left (ActiveMQ)
 *   QUIET              `quiet` is long enough, see Quiet
 *   CRASH_P CRASH_M    producers, members may be killed and started again, at any time, any number of times
 *   the operator:      by default takes one rung everywhere, and sees it reached, before the next, and turns
 *                      round only when everything is handled. With
 *     EARLY            turns round when the rung is reached everywhere, whatever is on its way
 *     HASTY            begins with the next rung when everybody has been told the one before
 *     FREE             changes flags up and down, overlapping, within two neighbouring rungs at any time
 *     JUMP             sets any flag to the rung beside its own, without regard to the others
 *     OFF              may switch the old broker off for good once every service says that it is at `new`
 *   UNNAMED            the config names no groups: a group's queue is there from its first subscription on, and
 *                      not from a producer's first send
 *   ONE_PRODUCER       a producer that is killed and starts again counts as the same one
 *   NO_...             takes a guard out
 *
 * What is checked: whenever a broker confirms a message, every group has a queue there; when nothing moves
 * any more, every confirmed message has been handled by every group, no send waits, no fence is up, and every
 * member is at its rung; and with ORDER no message is handled, for the first time, after a later one of its
 * producer. The operator may stop at any time, whatever flags are then.
 *
 * What is abstracted:
 *   - Time. `quiet` is a condition here, see Quiet. That a producer goes back all the same where what it has
 *     sent is not handled in time (Walk::GoesBackUnproved) is left out, and with it what only such a producer
 *     makes necessary: fences on the old side, a choice between two fences, and patience with them.
 *   - A producer in order holds its sends whenever it likes and gives up again: Walk::MayGoBack, which asks
 *     before, only makes that rarer. Groups are named then, without which it would never pass.
 *   - Accepted is confirmed: a broker takes a message and confirms it at once; until then it is on the wire.
 *     A producer that is killed leaves its messages on the wire taken or lost. Repeats on the same side after
 *     a lost confirm make duplicates only, and are left out.
 *   - Handled is settled: a crash in between makes a duplicate only. Handlers do not fail.
 *   - Where order is kept, a broker gives the messages of a key to one member at a time (single active
 *     consumer, partition, message group): to another one only when the first has none unsettled there. In
 *     which order those of different keys arrive is open.
 *   - Brokers are up and answer. A group collects messages from its first subscription on (the harsher case:
 *     ActiveMQ, RabbitMQ without `groups`), and for ever. Backlogs are exact, or `quiet` is longer than the
 *     slowest handler.
 *   - A service produces or consumes, not both. All start at `old`, with every group subscribed there. One
 *     that is killed is back at once: what others do while it is down, they also do while it does nothing.
 *     A member remembers every producer that it has seen.
 */
#ifndef P
#define P 1
#endif
#ifndef N
#define N 2
#endif
#ifndef G
#define G 1
#endif
#ifndef M
#define M 2
#endif
#define MEMBERS (G * M)
#define SERVICES (MEMBERS + P) /* members first: member c is service c, producer p is service MEMBERS + p */
#define MSGS (P * N)           /* message p * N + n is the n-th of producer p */
#if defined(ORDER) && defined(CRASH_P) && !defined(ONE_PRODUCER)
#define STARTS /* it makes a difference which messages are from before a producer was killed */
#endif

/* Sides and rungs. */
#define OLD 0
#define NEW 1

/* A message on its way to a broker: on the wire or confirmed, + side. */
#define UNSENT 0
#define WIRE 1
#define CONFIRMED 3
#define LOST 5

/* A message in a group: what has become of it there. Those that a member has: 3 * number of the member +. */
#define NONE 0
#define READY 1
#define DONE 2
#define RUNNING 3 /* in a lane */
#define HELD 4    /* behind a fence */
#define MARKED 5  /* behind a fence, and arrived before the fence's position was taken */

byte flag[SERVICES];   /* Topic::policy_ */
byte stage[SERVICES];  /* Topic::stage_ */
bit attached[2 * MEMBERS]; /* SideState::attached of a member: [2 * c + side] */
bit declared[2 * G];   /* the group's queue exists on the side: [2 * g + side] */
bit route[P];          /* Router: where sends go */
bit moving[P];         /* Walk::moving_to_: sends wait */
byte sent[MSGS];
#ifdef STARTS
bit fresh[P];          /* has sent nothing since it started, and something before */
bit first[MSGS];       /* the first one that a producer sent since it started */
#endif
#ifdef ORDER
bit unclean[P];        /* Topic::moves_ is odd: what was sent before the last move may not be handled yet */
byte ups[P];           /* Topic::moves_: how often it has come to the new side, and sent something there */
bit came[P];           /* it has sent nothing there since */
byte ups_of[MSGS];     /* the first as a message says it, until it is handled: Sender::moves */
bit unclean_of[MSGS];  /* the same as a message says it, until it is handled: Sender::moves */
byte seen[MEMBERS];    /* KnownMoves: for each Identity the highest of ups_of, in two bits */
bit fence[MEMBERS];    /* Listener::FenceOn(Side::kNew) */
#ifdef POSITIONS
bit positioned[MEMBERS];
bit again[MEMBERS];    /* another producer has come over since */
byte before[MEMBERS];  /* what was on the old side then, and is not settled: a bit for each message */
bit asked[P];          /* Walk::confirmed_at_ */
byte left[P];          /* what was then on the side that is to be left, and is not settled */
#endif
#endif
#ifdef NO_ROUTE_CHECK
byte read[P];          /* 1 + the route that a send has read */
#endif
byte in_group[G * MSGS]; /* [g * MSGS + message] */
bit down;              /* the operator's direction */
bit stopped;           /* no flag changes and nothing is killed any more */
bit off;               /* the old broker is switched off */

c_code {
#define Other(side) (1 - (side))
#define GroupOf(c) ((c) / M)
#define NumberOf(c) ((c) % M)
#define At(c, side) now.attached[2 * (c) + (side)]
#define Has(c, m) now.in_group[GroupOf(c) * MSGS + (m)]

/* ---- ladder.hpp */

int PublishSide(int rung) { return rung >= 2 ? NEW : OLD; }
int Subscribes(int rung, int side) { return rung != (side == OLD ? 3 : 0); }
int NextRung(int x) { return now.stage[x] + (now.flag[x] > now.stage[x]) - (now.flag[x] < now.stage[x]); }
int StepSubscribes(int x, int side) {
    return !Subscribes(now.stage[x], side) && Subscribes(NextRung(x), side);
}
int StepPublishes(int x) { return PublishSide(now.stage[x]) != PublishSide(NextRung(x)); }
int StepLeaves(int x, int side) {
    return Subscribes(now.stage[x], side) && !Subscribes(NextRung(x), side);
}

/* ---- what a broker knows */

int SideOf(int m) { return (now.sent[m] - 1) % 2; }
int IsConfirmed(int m) { return now.sent[m] == CONFIRMED + OLD || now.sent[m] == CONFIRMED + NEW; }
int Unsettled(int state) { return state >= RUNNING; }
int StateAt(int c, int kind) { return kind + 3 * NumberOf(c); }
int IsOf(int state, int c) { return Unsettled(state) && (state - RUNNING) / 3 == NumberOf(c); }

/* Backend::CheckBacklog as member c of the group is told it: nothing ready, nothing unsettled. */
int Drained(int c, int side) {
    int m;
    for (m = 0; m < MSGS; ++m) {
        const int state = now.in_group[GroupOf(c) * MSGS + m];
        if (!IsConfirmed(m) || SideOf(m) != side || state == DONE || state == NONE) continue;
#ifdef NO_GROUP_WIDE_DRAIN
        if (Unsettled(state) && !IsOf(state, c)) continue;
#endif
        return 0;
    }
    return 1;
}

/* CheckEverybodyListens: every group has a member that is subscribed there. */
int EverybodyListens(int side) {
#ifndef NO_LISTEN_GUARD
    int g, i, listens;
    for (g = 0; g < G; ++g) {
        listens = 0;
        for (i = 0; i < M; ++i) listens |= At(g * M + i, side);
        if (!listens) return 0;
    }
#endif
    return 1;
}

/* Walk::Quiet. The model has no clock. With QUIET, `quiet` is longer than a producer's messages keep away
 * from a side that it still publishes to, and than a message is on the wire: a side is left only when nobody
 * publishes there. Without QUIET it is no guard at all: producers that are silent for longer. */
int Quiet(int side) {
#ifdef QUIET
    int p, m;
    for (p = 0; p < P; ++p) {
        if (now.route[p] == side) return 0;
    }
    for (m = 0; m < MSGS; ++m) {
        if (now.sent[m] == WIRE + side) return 0;
    }
#endif
    return 1;
}

int InFlight(int p, int side) {
    int n;
    for (n = 0; n < N; ++n) {
        if (now.sent[p * N + n] == WIRE + side) return 1;
    }
    return 0;
}

/* ---- producers */

int NextUnsent(int p) {
    int n;
    for (n = 0; n < N; ++n) {
        if (now.sent[p * N + n] == UNSENT) return p * N + n;
    }
    return -1;
}

/* The first message of the same producer: a service that was killed and starts again is another one. */
int Identity(int m) {
    int p = m / N;
#ifdef STARTS
    for (; m > p * N && !now.first[m]; --m) continue;
    return m;
#endif
    return p * N;
}

/* Router::Send, Router::Enter */
void Send(int p, int side) {
    const int m = NextUnsent(p);
    Printf("producer %d sends message %d to side %d\n", p, m, side);
    now.sent[m] = WIRE + side;
#ifndef UNNAMED
    { /* Backend::MakePublisher's destination names the groups: their queues are declared first */
        int g;
        for (g = 0; g < G; ++g) now.declared[2 * g + side] = 1;
    }
#endif
#ifdef STARTS
    now.first[m] = now.fresh[p];
    now.fresh[p] = 0;
#endif
#ifdef ORDER
    now.unclean_of[m] = now.unclean[p];
    if (side == NEW && now.came[p]) { now.came[p] = 0; ++now.ups[p]; }
    now.ups_of[m] = now.ups[p];
#endif
#ifdef NO_ROUTE_CHECK
    now.read[p] = 0;
#endif
}

/* Topic::PointTo, Router::PointTo: sends go on. */
void GoOn(int p) {
    now.moving[p] = 0;
#if defined(ORDER) && defined(POSITIONS)
    now.asked[p] = 0;
    now.left[p] = 0;
#endif
}

/* Walk::GoesBack: who does leaves nothing unhandled behind, and so raises no fence: the old side has none, and
 * no two fences wait for each other. */
int GoesBack(int p, int side) {
#if defined(ORDER) && !defined(NO_TURN_BACK)
    return side == OLD;
#else
    return 0;
#endif
}

/* Walk::LeavesNothing: every group has settled all that was on the side when the last confirm had come. */
int LeavesNothing(int p, int side) {
#if defined(ORDER) && defined(POSITIONS)
    return now.asked[p] && now.left[p] == 0;
#elif defined(ORDER)
    int m, g;
    for (m = 0; m < MSGS; ++m) {
        for (g = 0; g < G && IsConfirmed(m) && SideOf(m) == side; ++g) {
            if (now.in_group[g * MSGS + m] != DONE) return 0;
        }
    }
#endif
    return 1;
}

/* Whether a producer may ask for that: brokers that tell positions remember when. */
int MayAsk(int p) {
#if defined(ORDER) && defined(POSITIONS)
    return now.moving[p] && !now.asked[p] && !InFlight(p, now.route[p]) && GoesBack(p, Other(now.route[p]));
#endif
    return 0;
}

void Ask(int p) {
#if defined(ORDER) && defined(POSITIONS)
    int m, g;
    for (m = 0; m < MSGS; ++m) {
        for (g = 0; g < G && IsConfirmed(m) && SideOf(m) == now.route[p]; ++g) {
            if (now.in_group[g * MSGS + m] != DONE) now.left[p] |= 1 << m;
        }
    }
    now.asked[p] = 1;
#endif
}

/* Walk::TryPublish, when sends are held */
int MayMove(int p) {
#if defined(ORDER) && !defined(NO_SENDER_FENCE)
    if (InFlight(p, now.route[p])) return 0;
#endif
#ifdef NO_SECOND_LOOK
    return 1;
#endif
    return !GoesBack(p, Other(now.route[p])) || LeavesNothing(p, now.route[p]);
}

/* Walk::TryPublish, before sends are held */
int MayHold(int p) {
#ifdef NO_SECOND_LOOK /* instead of the one in MayMove */
    if (GoesBack(p, Other(now.route[p])) && !LeavesNothing(p, now.route[p])) return 0;
#endif
    return EverybodyListens(Other(now.route[p]));
}

void Move(int p) {
    GoOn(p);
    now.route[p] = Other(now.route[p]);
#ifdef ORDER
    now.unclean[p] = now.route[p] == NEW;
    now.came[p] = now.route[p] == NEW;
#endif
}

/* The next one of the connection to a side: a connection keeps its order. */
int NextOnWire(int p, int side) {
    int n;
    for (n = 0; n < N; ++n) {
        if (now.sent[p * N + n] == WIRE + side) return p * N + n;
    }
    return -1;
}

/* A broker takes a message: every group that it knows gets it. Promise 1: every group is known. */
int Accept(int m, int side) {
    int g, known = 1;
    Printf("side %d confirms message %d\n", side, m);
    for (g = 0; g < G; ++g) {
        if (now.declared[2 * g + side]) now.in_group[g * MSGS + m] = READY;
        else known = 0;
    }
    now.sent[m] = CONFIRMED + side;
    return known;
}

/* ---- members */

/* Dispatcher::Admit: a message goes into the lane of its key. A lane is handled in the order of admission,
 * so that one which is admitted behind a later one has lost its place. */
int Admit(int c, int m) {
    int later, in_place = 1;
#ifdef ORDER
    for (later = m + 1; later < (m / N + 1) * N; ++later) {
        if (Has(c, later) == StateAt(c, RUNNING) && Identity(m) == Identity(later)) in_place = 0;
    }
#endif
    Has(c, m) = StateAt(c, RUNNING);
    return in_place;
}

#ifdef ORDER
/* Dispatcher::Release */
int Release(int c, int kind) {
    int m, in_place = 1;
    for (m = 0; m < MSGS; ++m) {
        if (IsConfirmed(m) && SideOf(m) == NEW && Has(c, m) == StateAt(c, kind)) in_place &= Admit(c, m);
    }
    return in_place;
}

void Lower(int c) {
    now.fence[c] = 0;
#ifdef POSITIONS
    now.positioned[c] = 0;
    now.again[c] = 0;
    now.before[c] = 0;
#endif
}

/* Listener::Open: everything that was held goes. */
int Open(int c) {
    int in_place = Release(c, MARKED);
    in_place &= Release(c, HELD);
    Lower(c);
    return in_place;
}

/* Listener::NoteMove: the first message that shows that its producer has come over raises the fence. */
void NoteMove(int c, int m) {
    const int shift = 2 * Identity(m);
    if (!now.unclean_of[m] || now.ups_of[m] <= ((now.seen[c] >> shift) & 3)) return;
    now.seen[c] = (now.seen[c] & ~(3 << shift)) | now.ups_of[m] << shift;
#ifndef NO_HOLD
#ifdef NO_MEMBER_ASKS
    if (!At(c, OLD)) return;
#endif
    now.fence[c] = 1;
#ifdef POSITIONS
    now.again[c] = now.positioned[c];
#endif
#endif
}

/* Walk::TendFence: the position is taken after the fence was raised. */
int MayTakePosition(int c) {
#ifdef POSITIONS
    return now.fence[c] && !now.positioned[c];
#endif
    return 0;
}

void TakePosition(int c) {
#ifdef POSITIONS
    int m;
    for (m = 0; m < MSGS; ++m) {
        if (!IsConfirmed(m)) continue;
        if (SideOf(m) == NEW && Has(c, m) == StateAt(c, HELD)) Has(c, m) = StateAt(c, MARKED);
        if (SideOf(m) == OLD && Has(c, m) != NONE && Has(c, m) != DONE) now.before[c] |= 1 << m;
    }
    now.positioned[c] = 1;
#endif
}

/* Walk::TendFence: what was on the old side is settled by the group. */
int MayOpen(int c) {
    if (!now.fence[c]) return 0;
#ifdef POSITIONS
    return now.positioned[c] && now.before[c] == 0;
#else
    return Drained(c, OLD);
#endif
}

/* What has come since the position, behind another producer, stays for the next one. */
int OpenInOrder(int c) {
#if defined(POSITIONS) && !defined(NO_MARK)
    if (now.again[c]) {
        now.positioned[c] = 0;
        now.again[c] = 0;
        return Release(c, MARKED);
    }
#endif
    return Open(c);
}
#endif

/* The message of producer p that the broker would give to member c on that side. */
int Takeable(int c, int side, int p) {
    const uchar* const states = &now.in_group[GroupOf(c) * MSGS];
    int m, first = -1;
    if (!At(c, side) || (side == OLD && now.off)) return -1;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (!IsConfirmed(m) || SideOf(m) != side) continue;
        if (states[m] == READY && first < 0) first = m;
#ifdef ORDER
        if (Unsettled(states[m]) && !IsOf(states[m], c)) return -1;
#endif
    }
    return first;
}

int Take(int c, int side, int m) {
    int held = 0;
#ifdef ORDER
    if (side == NEW) {
        NoteMove(c, m);
        held = now.fence[c];
    }
#endif
    Printf("member %d takes message %d from side %d%s\n", c, m, side, held ? " and holds it" : "");
    if (!held) return Admit(c, m);
    Has(c, m) = StateAt(c, HELD);
    return 1;
}

/* The head of the lane of producer p's key. */
int Head(int c, int p) {
    int m;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (Has(c, m) == StateAt(c, RUNNING)) return m;
    }
    return -1;
}

/* A message that a group has settled keeps nobody waiting. */
void Forget(int m) {
#ifdef ORDER
    int x, settled = 1;
    for (x = 0; x < MEMBERS; ++x) {
        if (Has(x, m) != DONE) {
            settled = 0;
            continue;
        }
#ifdef POSITIONS
        now.before[x] &= ~(1 << m);
#endif
    }
    if (!settled) return;
    now.unclean_of[m] = 0;
    now.ups_of[m] = 0;
#ifdef POSITIONS
    for (x = 0; x < P; ++x) now.left[x] &= ~(1 << m);
#endif
#endif
}

/* The handler returns, and the message is settled. Promise 3: no later one was handled before. */
int Handle(int c, int m) {
    int later, in_order = 1;
    Printf("member %d has handled message %d\n", c, m);
    Has(c, m) = DONE;
    Forget(m);
#ifdef ORDER
    for (later = m + 1; later < (m / N + 1) * N; ++later) {
        if (Has(c, later) == DONE && Identity(m) == Identity(later)) in_order = 0;
    }
#endif
    return in_order;
}

void Attach(int c, int side) {
    At(c, side) = 1;
    now.declared[2 * GroupOf(c) + side] = 1;
}

/* Walk::NextGoal: a side is to be left, as a step or because the rung does not need it. */
int WantsToLeave(int c, int side) {
    if (now.flag[c] != now.stage[c]) return StepLeaves(c, side);
    return At(c, side) && !Subscribes(now.stage[c], side);
}

/* Walk::TryLeave and Walk::Leave; the second look makes them one. */
int MayLeave(int c, int side) {
#ifdef NO_DRAIN_GUARD
    return Quiet(side);
#else
    return Drained(c, side) && Quiet(side);
#endif
}

void Leave(int c, int side) {
    int m;
    for (m = 0; m < MSGS; ++m) { /* without the guard: what is unsettled goes back */
        uchar* const state = &now.in_group[GroupOf(c) * MSGS + m];
        if (IsConfirmed(m) && SideOf(m) == side && IsOf(*state, c)) *state = READY;
    }
    At(c, side) = 0;
}

/* Walk::LookBack: a member at rest looks once in a while at the side that it has left, and Walk::TendFence
 * asks the broker of the side that a fence waits for; what is there brings the member back. */
int SeesLateArrivals(int c, int side) {
    if (At(c, side) || Drained(c, side) || (side == OLD && now.off)) return 0;
#ifdef ORDER
    if (side == OLD && now.fence[c]) return 1;
#endif
#ifndef NO_RESUBSCRIBE
    return now.flag[c] == now.stage[c];
#endif
    return 0;
}

/* Killed, and started again: what is unsettled goes back to its place, and Topic's constructor begins at
 * the flag. */
void RestartMember(int c) {
    int m, side;
    for (m = 0; m < MSGS; ++m) {
        if (IsOf(Has(c, m), c)) Has(c, m) = READY;
    }
#ifdef ORDER
    Lower(c);
    now.seen[c] = 0;
#endif
    now.stage[c] = now.flag[c];
    for (side = OLD; side <= NEW; ++side) {
        At(c, side) = 0;
        if (Subscribes(now.stage[c], side)) Attach(c, side);
    }
    Printf("member %d is killed, and starts again at rung %d\n", c, now.stage[c]);
}

int StepsPublish(int c) { return StepPublishes(c) && EverybodyListens(PublishSide(NextRung(c))); }

void RestartProducer(int p) {
    now.stage[MEMBERS + p] = now.flag[MEMBERS + p];
    now.route[p] = PublishSide(now.stage[MEMBERS + p]);
    GoOn(p);
#ifdef ORDER
    now.unclean[p] = 0;
    now.ups[p] = 0;
    now.came[p] = 0;
#endif
#ifdef STARTS
    now.fresh[p] = now.sent[p * N] != UNSENT;
#endif
#ifdef NO_ROUTE_CHECK
    now.read[p] = 0;
#endif
    Printf("producer %d is killed, and starts again at rung %d\n", p, now.stage[MEMBERS + p]);
}

/* ---- the operator */

/* Whether the operator may turn round. */
int Settled(void) {
    int x, m, g, side;
    for (x = 0; x < SERVICES; ++x) {
        if (now.flag[x] != now.flag[0] || now.stage[x] != now.flag[x]) return 0;
    }
#ifdef EARLY
    return 1;
#endif
    for (x = 0; x < MEMBERS; ++x) {
        for (side = OLD; side <= NEW; ++side) {
            if (At(x, side) != Subscribes(now.stage[x], side)) return 0;
        }
    }
    for (m = 0; m < MSGS; ++m) {
        if (now.sent[m] == WIRE + OLD || now.sent[m] == WIRE + NEW) return 0;
        for (g = 0; g < G; ++g) {
            if (IsConfirmed(m) && now.in_group[g * MSGS + m] != DONE) return 0;
        }
    }
    return 1;
}

/* Whether the operator may tell a service this rung now: but for JUMP, nobody is told a third one. */
int MayFlip(int x, int rung) {
    int other, reached = 1, begun = 0;
    if (now.stopped || rung < 0 || rung > 3) return 0;
#ifndef JUMP
#ifndef FREE
    if (now.down == (rung > now.flag[x])) return 0;
#endif
    for (other = 0; other < SERVICES; ++other) {
#if !defined(FREE) && !defined(HASTY)
        if (now.flag[other] != rung && now.stage[other] != now.flag[other]) reached = 0;
#endif
        if (other != x && now.flag[other] != now.flag[x] && now.flag[other] != rung) return 0;
        begun |= now.flag[other] == rung;
    }
#endif
    return begun || reached;
}

void Flip(int x, int rung) {
#ifdef ORDER
#endif
    now.flag[x] = rung;
    Printf("%s %d is told rung %d\n", x < MEMBERS ? "member" : "producer",
           x < MEMBERS ? x : x - MEMBERS, rung);
}

/* Whether the operator may switch the old broker off: the status of every service says `new`. */
int AllAtNew(void) {
    int x;
    for (x = 0; x < SERVICES; ++x) {
        if (now.flag[x] != 3 || now.stage[x] != 3) return 0;
    }
    return 1;
}

/* When nothing moves any more: every confirmed message is handled by every group, no send waits, no fence is
 * up, and every walk is at its end (but for producers, who may wait for groups to listen). */
int AllIsWell(void) {
    int x, m, g;
    for (m = 0; m < MSGS; ++m) {
        if (now.sent[m] == LOST) continue;
        if (!IsConfirmed(m)) return 0;
        for (g = 0; g < G; ++g) {
            if (now.in_group[g * MSGS + m] != DONE) return 0;
        }
    }
    for (x = 0; x < MEMBERS; ++x) {
#ifdef ORDER
        if (now.fence[x]) return 0;
#endif
#ifndef JUMP
        if (now.stage[x] != now.flag[x]) return 0;
#endif
    }
    return 1;
}
}

#define EACH_SIDE(DO) DO(OLD) DO(NEW)
#if P == 1
#define EACH_PRODUCER(DO) DO(0)
#else
#define EACH_PRODUCER(DO) DO(0) DO(1)
#endif

bit ok = 1; /* scratch: the answer of the transition that is under way; always 1 in between */

/* Topic::SetPolicy, Topic::Configure */
#define TOLD(x, change) \
    :: d_step { c_expr { (MayFlip(x, now.flag[x] change)) } -> c_code { Flip(x, now.flag[x] change); } }

proctype Producer(byte p) {
    byte x = MEMBERS + p;
end: do
    TOLD(PProducer->x, + 1)
    TOLD(PProducer->x, - 1)

    /* Router::Send: the route is read once more when the send has been counted in. */
#ifndef NO_ROUTE_CHECK
    :: d_step { c_expr { (NextUnsent(PProducer->p) >= 0 && !now.moving[PProducer->p]) } ->
        c_code { Send(PProducer->p, now.route[PProducer->p]); } }
#else
    :: d_step { c_expr { (NextUnsent(PProducer->p) >= 0 && !now.moving[PProducer->p] &&
                         !now.read[PProducer->p]) } ->
        read[p] = 1 + route[p]; printf("producer %d reads that it sends to side %d\n", p, route[p]) }
    :: d_step { c_expr { (now.read[PProducer->p] != 0) } ->
        c_code { Send(PProducer->p, now.read[PProducer->p] - 1); } }
#endif

#define ACCEPT(side) \
    :: d_step { c_expr { (NextOnWire(PProducer->p, side) >= 0 && !(side == OLD && now.off)) } -> \
        c_code { now.ok = Accept(NextOnWire(PProducer->p, side), side); }; \
        assert(ok) /* a confirmed message that a group never gets */ }
    EACH_SIDE(ACCEPT)

    /* Walk::TrySubscribe and Walk::TryLeave without a subscription */
    :: d_step { c_expr { (now.flag[PProducer->x] != now.stage[PProducer->x] && !StepPublishes(PProducer->x) &&
                         !(StepLeaves(PProducer->x, OLD) && InFlight(PProducer->p, OLD)) &&
                         !(StepLeaves(PProducer->x, NEW) && InFlight(PProducer->p, NEW))) } ->
        c_code { now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d reaches rung %d\n", p, stage[x]) }

    /* Walk::TryPublish: the guard, then the sender's fence, and Walk::LeavesNothing for those that return */
    :: d_step { c_expr { (!now.moving[PProducer->p] && now.flag[PProducer->x] != now.stage[PProducer->x] &&
                         StepPublishes(PProducer->x) && MayHold(PProducer->p)) } ->
        c_code { now.moving[PProducer->p] = 1; };
        printf("producer %d holds its sends to move\n", p) }
    :: d_step { c_expr { (now.moving[PProducer->p] && StepPublishes(PProducer->x) &&
                         MayMove(PProducer->p)) } ->
        c_code { Move(PProducer->p);
                 now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d publishes to side %d at rung %d\n", p, route[p], stage[x]) }
    :: d_step { c_expr { (MayAsk(PProducer->p)) } ->
        c_code { Ask(PProducer->p); };
        printf("producer %d asks what is left on side %d\n", p, route[p]) }
#ifndef NO_CALL_OFF
    /* Walk::CallOffMove */
    :: d_step { c_expr { (now.moving[PProducer->p] && !StepPublishes(PProducer->x)) } ->
        c_code { GoOn(PProducer->p); };
        printf("producer %d calls its move off\n", p) }
#endif
    /* Walk::GoOnPublishing: sends are not held for long; when flags change no more, for as long as it takes */
    :: d_step { c_expr { (!now.stopped && now.moving[PProducer->p] &&
                         GoesBack(PProducer->p, Other(now.route[PProducer->p])) && !MayMove(PProducer->p)) } ->
        c_code { GoOn(PProducer->p); };
        printf("producer %d goes on where it is for the time being\n", p) }

#ifdef CRASH_P
    /* Killed, and started again: what is on the wire arrives, or never does. */
#define LOSE(side) \
    :: d_step { c_expr { (!now.stopped && NextOnWire(PProducer->p, side) >= 0) } -> \
        c_code { int n; \
                 for (n = 0; n < N; ++n) { \
                     int m = PProducer->p * N + n; \
                     if (now.sent[m] == WIRE + OLD || now.sent[m] == WIRE + NEW) now.sent[m] = LOST; \
                 } \
                 RestartProducer(PProducer->p); }; \
        }
    EACH_SIDE(LOSE)
    :: d_step { c_expr { (!now.stopped && !InFlight(PProducer->p, OLD) && !InFlight(PProducer->p, NEW)) } ->
        c_code { RestartProducer(PProducer->p); };
        }
#endif
    od
}

proctype Member(byte c) {
end: do
    TOLD(PMember->c, + 1)
    TOLD(PMember->c, - 1)

    /* SideReceiver::OnDelivery, Dispatcher::Offer */
#define TAKE_OLD(p) TAKE(OLD, p)
#define TAKE_NEW(p) TAKE(NEW, p)
#define TAKE(side, p) \
    :: d_step { c_expr { (Takeable(PMember->c, side, p) >= 0) } -> \
        c_code { now.ok = Take(PMember->c, side, Takeable(PMember->c, side, p)); }; \
        assert(ok) /* order: a later message of the key is in the lane */ }
    EACH_PRODUCER(TAKE_OLD)
    EACH_PRODUCER(TAKE_NEW)

    /* Dispatcher::Run, Item::Ack */
#define HANDLE(p) \
    :: d_step { c_expr { (Head(PMember->c, p) >= 0) } -> \
        c_code { now.ok = Handle(PMember->c, Head(PMember->c, p)); }; \
        assert(ok) /* order: a later message of the key was handled before */ }
    EACH_PRODUCER(HANDLE)

#ifdef ORDER
    /* Walk::TendFence */
    :: d_step { c_expr { (MayTakePosition(PMember->c)) } ->
        c_code { TakePosition(PMember->c); };
        printf("member %d asks what is left on side 0\n", c) }
    :: d_step { c_expr { (MayOpen(PMember->c)) } ->
        c_code { now.ok = OpenInOrder(PMember->c); };
        printf("member %d opens its fence, or moves it\n", c); assert(ok) }
#endif

    /* Walk::TrySubscribe */
#define SUBSCRIBE(side) \
    :: d_step { c_expr { (StepSubscribes(PMember->c, side) && !At(PMember->c, side)) } -> \
        c_code { Attach(PMember->c, side); }; \
        printf("member %d subscribes to side %d\n", c, side) } \
    :: d_step { c_expr { (StepSubscribes(PMember->c, side) && At(PMember->c, side)) } -> \
        c_code { now.stage[PMember->c] = NextRung(PMember->c); }; \
        printf("member %d reaches rung %d\n", c, stage[c]) }
    EACH_SIDE(SUBSCRIBE)

    /* Walk::TryPublish, in a service that does not publish */
    :: d_step { c_expr { (StepsPublish(PMember->c)) } ->
        c_code { now.stage[PMember->c] = NextRung(PMember->c); };
        printf("member %d reaches rung %d\n", c, stage[c]) }

    /* Walk::TryLeave, Walk::Leave */
#define LEAVE(side) \
    :: d_step { c_expr { (WantsToLeave(PMember->c, side) && MayLeave(PMember->c, side)) } -> \
        c_code { Leave(PMember->c, side); \
                 now.stage[PMember->c] = NextRung(PMember->c); }; \
        printf("member %d leaves side %d\n", c, side) }
    EACH_SIDE(LEAVE)

    /* Walk::Rejoin */
#define RESUBSCRIBE(side) \
    :: d_step { c_expr { (SeesLateArrivals(PMember->c, side)) } -> \
        c_code { Attach(PMember->c, side); }; \
        printf("member %d comes back to side %d\n", c, side) }
    EACH_SIDE(RESUBSCRIBE)

#ifdef CRASH_M
    :: d_step { !stopped -> c_code { RestartMember(PMember->c); } }
#endif
    od
}

proctype Operator() {
    do
    :: stopped -> break
    :: atomic { !stopped -> stopped = 1; printf("no flag changes any more\n"); break }
#if !defined(FREE) && !defined(JUMP)
    :: d_step { c_expr { (Settled()) } -> down = 1 - down; printf("the operator turns round\n") }
#endif
#ifdef OFF
    :: d_step { c_expr { (AllAtNew()) } -> stopped = 1; off = 1;
        printf("the operator switches the old broker off\n") }
#endif
    od;
    timeout ->
    c_code { now.ok = AllIsWell(); };
    assert(ok) /* something confirmed is left, or something waits for ever */
}

init {
    byte i;
    atomic {
        for (i : 0 .. MEMBERS - 1) {
            attached[2 * i + OLD] = 1;
            declared[2 * (i / M) + OLD] = 1;
            run Member(i)
        }
        for (i : 0 .. P - 1) { run Producer(i) }
        i = 0;
        run Operator()
    }
}
