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
 *     UP               never turns round
 *   FROM MEMBERS_FROM TO   the rung where all services, or the members, begin, and the last one that anybody is told
 *   UNNAMED            the config names no groups: a group's queue is there from its first subscription on, and
 *                      not from a producer's first send
 *   NAMED ASKED        how many groups the config names, and how many a producer asks when it goes back: those that
 *                      its own client subscribes for as well
 *   RELOAD             a producer's config is read again, and names every group then
 *   ONE_PRODUCER       a producer that is killed and starts again counts as the same one
 *   SILENT             the old broker does not answer questions at times: a fence whose side was left opens
 *                      without an answer then
 *   UNVOUCHED          a group that is not named does not count on being asked, and holds what has come back too
 *   UNPROVED           a producer goes back, after a while, though something that it has sent is not handled
 *                      (not with POSITIONS)
 *     NEWER            with either: a fence on the old side opens where all that it waits for is held here, and
 *                      its producer has gone there last
 *   RESTARTS           brokers are started again: what is not settled comes again
 *   LOST_CONFIRMS      confirms are lost, and what they were for is sent again on the same side
 *   TIMES_OUT          sends fail at their deadline, though their broker may take them yet
 *   HANDLER_SENDS      the handler of a producer's first message sends one itself, and waits for its confirm; with
 *     OTHER_TOPIC      a handler of another topic does, at any time
 *   KEYS               a fence lets other keys pass where all that it waits for is in the member's own hands
 *   POISON             that message's handler never succeeds: what is well is told of other producers alone
 *   LISTS RETURNS      the broker tells what is ready and what is handed out in two answers, which are asked for
 *                      LISTS times in turn; so often at the most a member gives something back. With
 *     DELIVERED_FIRST  what is handed out is asked for first
 *   LIVENESS           each thread is a process of its own, and spin is asked for a way to go on for ever without
 *                      the end below, with each process that could always do something doing something; with
 *     RESTLESS         flags may change for ever, and every confirmed message is handled all the same
 *   NO_...             takes a guard out, as do UNKNOWN_IS_DRAINED, KEEPS_ASKED, GIVES_UP_SOONER, ALL_KEYS,
 *                      ONLY_BEFORE and ONLY_AFTER
 *
 * What is checked: whenever a broker confirms a message, every group has a queue there; when nothing moves
 * any more, every confirmed message has been handled by every group, no send waits, no fence is up, and every
 * walk is at its rung; and with ORDER no message is handled, for the first time, after a later one of its
 * producer. The operator may stop at any time, whatever flags are then; from then on brokers answer, are not started
 * again, and nothing is killed. With LIVENESS, that end comes, and is not put off for ever.
 *
 * What a time-out does is promised as far as it goes: where a fence opened without an answer, or an old side's fence
 * waited in vain, what was left on the other side then may be overtaken by what that fence held, and nothing else.
 *
 * What is abstracted:
 *   - Time. `quiet` is a condition here, see Quiet. What happens after a while may happen at once, and when
 *     flags change no more it does; that which a broker's silence brings about needs the silence.
 *   - Fences on the old side are there with UNPROVED and UNVOUCHED alone: nothing else makes them necessary. That
 *     one of them opens sooner, because all that it waits for is held here and taken for newer, needs NEWER as well.
 *   - A producer in order holds its sends whenever it likes and gives up again: Walk::MayGoBack, which asks
 *     before, only makes that rarer. Groups are named then, without which it would never pass.
 *   - Accepted is confirmed, but for LOST_CONFIRMS: a broker takes a message and confirms it at once; until then it is
 *     on the wire. A producer that is killed leaves its messages on the wire taken or lost. Of a message that a
 *     broker has twice, the second is settled where the first is.
 *   - Handled is settled: a crash in between makes a duplicate only. A handler that fails and is called again is
 *     one that has not returned yet: the message keeps its place.
 *   - Where order is kept, a broker gives the messages of a key to one member at a time (single active
 *     consumer, partition, message group): to another one only when the first has none unsettled there. In
 *     which order those of different keys arrive is open.
 *   - A group collects messages from its first subscription on (the harsher case: ActiveMQ, RabbitMQ without
 *     `groups`), and for ever. Backlogs are exact or unknown, or `quiet` is longer than the slowest handler.
 *   - A service produces or consumes, not both, but for handlers that send. All start at one rung, with every group
 *     subscribed there. One that is killed is back at once: what others do while it is down, they also do while it
 *     does nothing. A member remembers every producer that it has seen.
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
#ifndef NAMED
#define NAMED G
#endif
#ifndef ASKED
#define ASKED NAMED
#endif
#ifndef FROM
#define FROM 0
#endif
#ifndef MEMBERS_FROM
#define MEMBERS_FROM FROM
#endif
#ifndef TO
#define TO 3
#endif
#define MEMBERS (G * M)
#define SERVICES (MEMBERS + P) /* members first: member c is service c, producer p is service MEMBERS + p */
#define MSGS (P * N)           /* message p * N + n is the n-th of producer p */
#if defined(UNPROVED) || defined(UNVOUCHED)
#define OLD_FENCES
#endif
#if defined(ORDER) && defined(CRASH_P) && !defined(ONE_PRODUCER)
#define STARTS /* it makes a difference which messages are from before a producer was killed */
#endif

/* Sides and rungs. */
#define OLD 0
#define NEW 1

/* What a process does: all that its service does, or one thread's part of it (LIVENESS). */
#define SENDS 1
#define CONFIRMS 2
#define RECEIVES 4
#define HANDLES 8
#define TENDS 16
#define WALKS 32
#define ALL 63
#define P_DOES(role) (PProducer->roles & role)
#define M_DOES(role) (PMember->roles & role)

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
#ifdef OLD_FENCES
byte downs[P];         /* the same as ups for the old side, where it has come back to without proof */
byte seen_old[MEMBERS]; /* KnownMoves of the old side */
bit fence_old[MEMBERS]; /* Listener::FenceOn(Side::kOld) */
#ifdef NEWER
byte took[MEMBERS];    /* SeenProducers: what it has ever taken */
#endif
#endif
#ifdef POSITIONS
bit positioned[MEMBERS];
bit again[MEMBERS];    /* another producer has come over since */
byte before[MEMBERS];  /* what was on the old side then, and is not settled: a bit for each message */
#ifdef LISTS
byte answers[MEMBERS]; /* lists that it has seen without any of that, one after the other */
byte returned;         /* how often a message has been given back */
#endif
bit asked[P];          /* Walk::confirmed_at_ */
byte left[P];          /* what was then on the side that is to be left, and is not settled */
#endif
#ifdef HANDLER_SENDS
bit proved[P];         /* nothing is left, and nothing has been sent since that was asked */
#endif
#ifdef KEYS
byte looking[MEMBERS]; /* how far a look for what other keys wait for has come */
byte own[MEMBERS];     /* what it had taken from the old side and not settled, when that began */
byte marked[MEMBERS];  /* what was held then */
byte counted[MEMBERS]; /* what the broker has counted for the group since */
bit anew[MEMBERS];     /* another producer has come over since */
byte behind[MEMBERS];  /* Narrow::behind: what the keys that are held wait for, where others pass */
byte upto[MEMBERS];    /* Narrow::mark: what was held then */
#endif
#if defined(SILENT) || defined(OLD_FENCES)
byte excused[G];       /* what a fence has not waited for: its broker did not answer, or nothing went on */
#ifdef KEEPS_ASKED
bit gave_up[MEMBERS];  /* it has opened a fence without an answer before */
#endif
#endif
#endif
#ifdef SILENT
bit silent;            /* the old broker answers no question */
#endif
#ifdef RELOAD
bit reloaded[P];       /* its config names every group by now, and its sends take another route */
byte rerouted;         /* the messages that were sent so: a bit for each */
#endif
#ifdef TIMES_OUT
byte failed;           /* sends that have failed, though their broker may take them yet */
#endif
#ifdef HANDLER_SENDS
byte answer[P];        /* 1 + the message that the handler of the producer's first one has sent */
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
/* Whether a broker has the message, or had it: that is so before its producer knows, where a confirm was lost. */
int Lies(int m, int side) {
    int g, taken = IsConfirmed(m);
    for (g = 0; g < G; ++g) taken |= now.in_group[g * MSGS + m] != NONE;
    return taken && SideOf(m) == side;
}
int Unsettled(int state) { return state >= RUNNING; }
int StateAt(int c, int kind) { return kind + 3 * NumberOf(c); }
int IsOf(int state, int c) { return Unsettled(state) && (state - RUNNING) / 3 == NumberOf(c); }

/* Whether a broker answers a question. */
int Answers(int side) {
#ifdef SILENT
    return side == NEW || !now.silent;
#else
    return 1;
#endif
}

/* Backend::CheckBacklog as member c of the group is told it: nothing ready, nothing unsettled. */
int Drained(int c, int side) {
    int m;
#ifdef UNKNOWN_IS_DRAINED
    if (!Answers(side)) return 1;
#endif
    if (!Answers(side)) return 0;
    for (m = 0; m < MSGS; ++m) {
        const int state = now.in_group[GroupOf(c) * MSGS + m];
        if (!Lies(m, side) || state == DONE || state == NONE) continue;
#ifdef NO_GROUP_WIDE_DRAIN
        if (Unsettled(state) && !IsOf(state, c)) continue;
#endif
        return 0;
    }
    return 1;
}

/* The groups that a producer's config names, and those that it asks when it goes back: the ones that it subscribes
 * for itself are among them. */
int NamedBy(int p) {
#ifdef RELOAD
    if (now.reloaded[p]) return G;
#endif
    return NAMED;
}

int AskedBy(int p) {
#ifdef RELOAD
    if (now.reloaded[p]) return G;
#endif
    return ASKED;
}

/* CheckEverybodyListens: every group has a member that is subscribed there. */
int EverybodyListens(int side, int named) {
#ifndef NO_LISTEN_GUARD
    int g, i, listens;
    if (!Answers(side)) return 0;
    for (g = 0; g < named; ++g) {
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
#ifdef TIMES_OUT
        if ((now.failed >> (p * N + n)) & 1) continue;
#endif
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

#ifdef RELOAD
int MayTakeSecondRoute(int p);
#endif
/* Whether business code sends: the last message may be a handler's. */
int MaySend(int p) {
#ifdef HANDLER_SENDS
    if (!now.answer[p] && NextUnsent(p) == p * N + N - 1) return 0;
#endif
#ifdef RELOAD
    if (!MayTakeSecondRoute(p)) return 0;
#endif
    return NextUnsent(p) >= 0 && !now.moving[p];
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
#ifdef RELOAD
    if (now.reloaded[p]) now.rerouted |= 1 << m;
#endif
#ifndef UNNAMED
    { /* Backend::MakePublisher's destination names the groups: their queues are declared first */
        int g;
        for (g = 0; g < NamedBy(p); ++g) now.declared[2 * g + side] = 1;
    }
#endif
#ifdef STARTS
    now.first[m] = now.fresh[p];
    now.fresh[p] = 0;
#endif
#ifdef ORDER
    now.unclean_of[m] = now.unclean[p];
#ifdef OLD_FENCES
    if (side == OLD && now.came[p]) { now.came[p] = 0; ++now.downs[p]; }
#endif
    if (side == NEW && now.came[p]) { now.came[p] = 0; ++now.ups[p]; }
    now.ups_of[m] = now.ups[p];
#ifdef OLD_FENCES
    if (side == OLD) now.ups_of[m] = now.downs[p];
#endif
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
#if defined(ORDER) && defined(HANDLER_SENDS)
    now.proved[p] = 0;
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
        for (g = 0; g < AskedBy(p) && Lies(m, side); ++g) {
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
        for (g = 0; g < ASKED && Lies(m, now.route[p]); ++g) {
            if (now.in_group[g * MSGS + m] != DONE) now.left[p] |= 1 << m;
        }
    }
    now.asked[p] = 1;
#endif
}

/* Walk::TryPublish, when sends are held. Those of handlers pass meanwhile, until it is proved that nothing is
 * left, and then it is seen whether any has. */
int MayProve(int p);
int MayMove(int p) {
#if defined(ORDER) && defined(HANDLER_SENDS)
    return now.proved[p] || !GoesBack(p, Other(now.route[p])) && MayProve(p);
#endif
    return MayProve(p);
}

int MayProve(int p) {
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
    return EverybodyListens(Other(now.route[p]), NamedBy(p));
}

/* Walk::LongestHold is over. */
int MayGiveUp(int p) {
    if (!now.moving[p] || !GoesBack(p, Other(now.route[p])) || MayMove(p) || MayProve(p)) return 0;
#ifdef GIVES_UP_SOONER
    return 1;
#endif
#ifdef LIVENESS /* not before it has asked */
    return !MayAsk(p);
#endif
    return !now.stopped;
}

/* Walk::GoesBackUnproved: nobody can say that everything is handled, for long. The time is abstracted. */
int MayMoveUnproved(int p) {
    return now.moving[p] && GoesBack(p, Other(now.route[p])) && !InFlight(p, now.route[p]) &&
           !LeavesNothing(p, now.route[p]);
}

void MoveUnproved(int p) {
#ifdef UNPROVED
    GoOn(p);
    now.route[p] = OLD;
    now.unclean[p] = 1;
    now.came[p] = 1;
#endif
}

void Move(int p) {
    GoOn(p);
    now.route[p] = Other(now.route[p]);
#ifdef ORDER
    now.unclean[p] = now.route[p] == NEW;
    now.came[p] = now.route[p] == NEW;
#ifdef UNVOUCHED
    now.came[p] = 1;
#endif
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

#ifdef RELOAD
/* Two routes of one topic to one side: each keeps its order, and the second begins when everything of the first is
 * confirmed. */
int NextOnSecondRoute(int p, int side) {
    int n;
    for (n = 0; n < N; ++n) {
        const int m = p * N + n;
        if (now.sent[m] == WIRE + side && ((now.rerouted >> m) & 1)) {
            return m == NextOnWire(p, side) ? -1 : m;
        }
    }
    return -1;
}

int MayTakeSecondRoute(int p) {
    int m;
#ifndef NO_ROUTE_WAIT
    for (m = p * N; m < (p + 1) * N && now.reloaded[p]; ++m) {
        if (now.sent[m] == WIRE + now.route[p] && !((now.rerouted >> m) & 1)) return 0;
    }
#endif
    return 1;
}
#endif

/* A broker takes a message: every group that it knows gets it. Promise 1: every group is known. */
int Accept(int m, int side) {
    int g, known = 1;
    Printf("side %d confirms message %d\n", side, m);
    for (g = 0; g < G; ++g) {
        if (!now.declared[2 * g + side]) known = 0;
        else if (now.in_group[g * MSGS + m] == NONE) now.in_group[g * MSGS + m] = READY; /* else a duplicate */
    }
    now.sent[m] = CONFIRMED + side;
    return known;
}

/* The same, and the confirm is lost: the producer sends it there again. */
int LoseConfirm(int m, int side) {
    const int known = Accept(m, side);
    Printf("... which message %d's producer is not told\n", m);
    now.sent[m] = WIRE + side;
    return known;
}

/* A connection keeps its order, also when everything that is not confirmed is sent again. */
int NextToLose(int p, int side) {
    int m = NextOnWire(p, side);
    for (; m >= 0 && m < (p + 1) * N; ++m) {
        if (now.sent[m] == WIRE + side && !Lies(m, side)) return m;
    }
    return -1;
}

/* A broker is started again: what is not settled goes back to its place, and its members take nothing of that
 * for theirs any more (Dispatcher::DropStale). */
int HasUnsettled(int side) {
    int m, g;
    for (m = 0; m < MSGS; ++m) {
        for (g = 0; g < G; ++g) {
            if (Lies(m, side) && Unsettled(now.in_group[g * MSGS + m])) return 1;
        }
    }
    return 0;
}

void RestartBroker(int side) {
    int m, g;
    for (m = 0; m < MSGS; ++m) {
        for (g = 0; g < G; ++g) {
            uchar* const state = &now.in_group[g * MSGS + m];
            if (!Lies(m, side) || !Unsettled(*state)) continue;
            *state = READY;
#ifdef KEYS
            { /* what arrives again is another arrival, behind the mark */
                int c;
                for (c = g * M; c < (g + 1) * M; ++c) {
                    now.marked[c] &= ~(1 << m);
                    now.upto[c] &= ~(1 << m);
                }
            }
#endif
        }
    }
    Printf("side %d is started again\n", side);
}

/* ---- members */

/* Whether message m has been let wait no longer, by a time-out. */
int Excused(int c, int m) {
#if defined(ORDER) && (defined(SILENT) || defined(OLD_FENCES))
    return (now.excused[GroupOf(c)] >> m) & 1;
#else
    return 0;
#endif
}

/* The head of the lane of producer p's key. */
int Head(int c, int p) {
    int m;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (Has(c, m) == StateAt(c, RUNNING)) return m;
    }
    return -1;
}

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
    return in_place || Excused(c, m);
}

#ifdef ORDER
/* Dispatcher::Release */
int Release(int c, int kind) {
    int m, in_place = 1;
    for (m = 0; m < MSGS; ++m) {
        if (Lies(m, NEW) && Has(c, m) == StateAt(c, kind)) in_place &= Admit(c, m);
    }
    return in_place;
}

void Lower(int c) {
    now.fence[c] = 0;
#ifdef KEYS
    now.looking[c] = 0;
    now.own[c] = 0;
    now.marked[c] = 0;
    now.counted[c] = 0;
    now.behind[c] = 0;
    now.upto[c] = 0;
#endif
#ifdef POSITIONS
    now.positioned[c] = 0;
    now.again[c] = 0;
    now.before[c] = 0;
#ifdef LISTS
    now.answers[c] = 0;
#endif
#endif
}

#ifdef OLD_FENCES
int HoldsAt(int c, int m, int side) { return Lies(m, side) && Has(c, m) == StateAt(c, HELD); }

int OpenOld(int c) {
    int m, in_place = 1;
    now.fence_old[c] = 0;
    for (m = 0; m < MSGS; ++m) {
        if (HoldsAt(c, m, OLD)) in_place &= Admit(c, m);
    }
    return in_place;
}

/* FenceWatch::WaitsInVain: nothing is handled on the new side for long, and no handler here is why. */
int WaitsInVain(int c) {
    int m;
    if (!now.fence_old[c]) return 0;
#ifdef NO_PATIENCE
    return 0;
#endif
    for (m = 0; m < MSGS; ++m) {
        if (Lies(m, NEW) && Has(c, m) == StateAt(c, RUNNING)) return 0;
    }
    return !Drained(c, NEW);
}

int OpenInVain(int c) {
    int m, later;
    for (m = 0; m < MSGS; ++m) {
        if (!Lies(m, NEW) || Has(c, m) == NONE || Has(c, m) == DONE) continue;
        for (later = m + 1; later < (m / N + 1) * N; ++later) {
            if (HoldsAt(c, later, OLD)) now.excused[GroupOf(c)] |= 1 << m;
        }
    }
    return OpenOld(c);
}
#endif

#ifdef NEWER
/* SeenProducers::WentTo: to which side a producer was seen to go last. */
int WentTo(int c, int side) {
    int p, m, proved[2] = {0, 0}, shown[2] = {0, 0};
    for (p = 0; p < P; ++p) {
        int last[2] = {-1, -1};
        for (m = p * N; m < (p + 1) * N; ++m) {
            if ((now.took[c] >> m) & 1) last[SideOf(m)] = m;
        }
        if (last[OLD] >= 0 && last[NEW] >= 0) proved[last[NEW] > last[OLD] ? NEW : OLD] = 1;
        else if (last[NEW] >= 0) shown[NEW] = 1;
    }
    return proved[OLD] || proved[NEW] ? proved[side] : shown[side];
}

/* Walk::WaitsForNewer, of the fence on the old side. */
int WaitsForNewer(int c) {
    int m;
    if (!now.fence[c] || !now.fence_old[c] || !WentTo(c, NEW) || WentTo(c, OLD)) return 0;
    for (m = 0; m < MSGS; ++m) {
        if (!Lies(m, NEW) || Has(c, m) == NONE || Has(c, m) == DONE) continue;
        if (!HoldsAt(c, m, NEW)) return 0;
    }
    return 1;
}
#endif

/* Listener::Open: everything that was held goes. */
int Open(int c) {
    int in_place = Release(c, MARKED);
    in_place &= Release(c, HELD);
    Lower(c);
    return in_place;
}

void RaiseFence(int c) {
    now.fence[c] = 1;
#ifdef POSITIONS
    now.again[c] = now.positioned[c];
#endif
#ifdef KEYS
    now.anew[c] = now.looking[c] != 0;
#endif
}

/* Listener::SetFencing: that a producer leaves nothing behind counts for a group that it asks. */
int Vouched(int c) {
#ifdef UNVOUCHED
    return GroupOf(c) < NAMED;
#endif
    return 1;
}

/* Listener::NoteMove: the first message that shows that its producer has come over raises the fence. */
void NoteMove(int c, int m) {
    const int shift = 2 * Identity(m);
#ifdef OLD_FENCES
    if (SideOf(m) == OLD) {
        if (!now.unclean_of[m] && Vouched(c)) return;
        if (now.ups_of[m] <= ((now.seen_old[c] >> shift) & 3)) return;
        now.seen_old[c] = (now.seen_old[c] & ~(3 << shift)) | now.ups_of[m] << shift;
#ifndef NO_OLD_FENCE
        now.fence_old[c] = 1;
#endif
        return;
    }
#endif
    if (!now.unclean_of[m] || now.ups_of[m] <= ((now.seen[c] >> shift) & 3)) return;
    now.seen[c] = (now.seen[c] & ~(3 << shift)) | now.ups_of[m] << shift;
#ifndef NO_HOLD
#ifdef NO_MEMBER_ASKS
    if (!At(c, OLD)) return;
#endif
    RaiseFence(c);
#endif
}

/* Walk::TendFence: the position is taken after the fence was raised. */
int MayTakePosition(int c) {
#ifdef POSITIONS
    return now.fence[c] && !now.positioned[c] && Answers(OLD);
#endif
    return 0;
}

void TakePosition(int c) {
#ifdef POSITIONS
    int m;
    for (m = 0; m < MSGS; ++m) {
        if (Lies(m, NEW) && Has(c, m) == StateAt(c, HELD)) Has(c, m) = StateAt(c, MARKED);
        if (Lies(m, OLD) && Has(c, m) != NONE && Has(c, m) != DONE) now.before[c] |= 1 << m;
    }
    now.positioned[c] = 1;
#endif
}

/* Walk::TendFence: what was on the old side is settled by the group. */
int MayOpen(int c) {
    if (!now.fence[c] || !Answers(OLD)) return 0;
#ifdef POSITIONS
#ifdef LISTS
    return now.positioned[c] && now.answers[c] == LISTS;
#endif
    return now.positioned[c] && now.before[c] == 0;
#else
    return Drained(c, OLD);
#endif
}

#ifdef LISTS
/* A broker that tells what is ready and what is handed out, in two answers: SettledLook. */
int MayAskForList(int c) {
    if (!now.positioned[c] || now.answers[c] == LISTS) return 0;
    if (!now.stopped) return 1;
    return now.before[c] == 0; /* see MayLook */
}

void AskForList(int c) {
#ifdef DELIVERED_FIRST
    const int ready = now.answers[c] % 2 == 1;
#else
    const int ready = now.answers[c] % 2 == 0;
#endif
    int m, listed = 0;
    for (m = 0; m < MSGS; ++m) {
        if (!((now.before[c] >> m) & 1) || Has(c, m) == DONE) continue;
        listed |= ready ? Has(c, m) == READY : Unsettled(Has(c, m));
    }
    Printf("member %d asks what is %s on side 0: %s\n", c, ready ? "ready" : "handed out", listed ? "some" : "none");
    now.answers[c] = listed ? 0 : now.answers[c] + 1;
}

/* A member gives back what it has begun with, or dies. */
int MayReturnToOld(int c, int p) {
    const int m = Head(c, p);
    return now.returned < RETURNS && m >= 0 && SideOf(m) == OLD;
}

void GiveBack(int c, int p) {
    int m;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (Lies(m, OLD) && IsOf(Has(c, m), c)) Has(c, m) = READY;
    }
    ++now.returned;
    Printf("member %d gives back what it has from side 0\n", c);
}
#endif

/* What has come since the position, behind another producer, stays for the next one. */
int OpenInOrder(int c) {
#ifdef LISTS
    now.answers[c] = 0;
#endif
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

#ifdef KEYS
/* Where all that is left on the old side is in this member's own hands, its keys alone wait. That takes three
 * steps: what the member has; what the broker counts for the group; what the member has still. Only what it
 * has had all the time is certain to be among what was counted. */
int InOwnHands(int c) {
    int m, mask = 0;
    for (m = 0; m < MSGS; ++m) {
        if (Lies(m, OLD) && Has(c, m) == StateAt(c, RUNNING)) mask |= 1 << m;
    }
    return mask;
}

int HeldNow(int c) {
    int m, mask = 0;
    for (m = 0; m < MSGS; ++m) {
        if (Has(c, m) == StateAt(c, HELD) || Has(c, m) == StateAt(c, MARKED)) mask |= 1 << m;
    }
    return mask;
}

int Count(int mask) {
    int n = 0;
    for (; mask != 0; mask >>= 1) n += mask & 1;
    return n;
}

int CountLeft(int c) {
    int m, n = 0;
    for (m = 0; m < MSGS; ++m) {
        if (Lies(m, OLD) && Has(c, m) != NONE && Has(c, m) != DONE) ++n;
    }
    return n;
}

/* What may pass when this is in the member's hands: what is held of other keys. */
int OtherKeys(int held, int own) {
    int m, o, mask = 0;
    for (m = 0; m < MSGS; ++m) {
        int waits = 0;
        for (o = 0; o < MSGS; ++o) waits |= ((own >> o) & 1) && o / N == m / N;
        if (((held >> m) & 1) && !waits) mask |= 1 << m;
    }
    return mask;
}

/* When flags change no more, only a look that helps: whether nothing moves any more could not be seen else. */
int MayLook(int c) {
    if (!now.fence[c] || now.looking[c] || HeldNow(c) == 0) return 0;
#ifdef LIVENESS /* one thread looks whether it may open, and then at this */
    return !MayOpen(c) && !MayTakePosition(c);
#else
    if (!now.stopped) return 1;
    return CountLeft(c) == Count(InOwnHands(c)) && OtherKeys(HeldNow(c), InOwnHands(c)) != 0;
#endif
}

void Look(int c) {
    now.looking[c] = 1;
    now.anew[c] = 0;
    now.own[c] = InOwnHands(c);
    now.marked[c] = HeldNow(c);
}

int MayAskHowMany(int c) { return now.looking[c] == 1 && Answers(OLD); }

void AskHowMany(int c) {
    now.looking[c] = 2;
    now.counted[c] = CountLeft(c);
}

void EndLook(int c) {
    now.anew[c] = 0;
    now.looking[c] = 0;
    now.own[c] = 0;
    now.marked[c] = 0;
    now.counted[c] = 0;
}

int LetPass(int c, int mask) {
    int m, in_place = 1;
    for (m = 0; m < MSGS; ++m) {
        if ((mask >> m) & 1) in_place &= Admit(c, m);
    }
    return in_place;
}

/* Walk::NarrowFence: the fence is down but for the keys of what is in hand; where another producer has come over
 * since, it stays up, and only what was held before goes. */
int LetOthersPass(int c) {
    int own = now.own[c] & InOwnHands(c), marked = now.marked[c] & HeldNow(c);
#ifdef ONLY_BEFORE
    own = now.own[c];
#endif
#ifdef ONLY_AFTER
    own = InOwnHands(c);
#endif
#ifdef NO_ALL_IN_HANDS
    now.counted[c] = Count(own);
#endif
    if (now.counted[c] != Count(own) || own == 0) {
        EndLook(c);
        return 1;
    }
#ifdef ALL_KEYS
    own = 0;
#endif
    now.fence[c] = now.anew[c];
    EndLook(c);
#ifdef POSITIONS
    { /* the next fence has a position of its own */
        int m;
        for (m = 0; m < MSGS; ++m) {
            if (Has(c, m) == StateAt(c, MARKED)) Has(c, m) = StateAt(c, HELD);
        }
    }
    now.positioned[c] = 0;
    now.again[c] = 0;
    now.before[c] = 0;
#endif
    now.behind[c] = own;
    now.upto[c] = own ? marked : 0;
    return LetPass(c, OtherKeys(now.fence[c] ? marked : HeldNow(c), own));
}

/* Walk::TendNarrow: what was in hand is settled, and its key goes; or it was given back, and all wait again. */
int MayTendNarrow(int c) { return now.behind[c] != 0 && (now.behind[c] & ~InOwnHands(c)) != 0; }

int TendNarrow(int c) {
    int m, given_back = 0;
    for (m = 0; m < MSGS; ++m) {
        if (((now.behind[c] >> m) & 1) == 0 || Has(c, m) == StateAt(c, RUNNING)) continue;
        if (Has(c, m) != DONE) given_back = 1;
        now.behind[c] &= ~(1 << m);
    }
    if (given_back) {
#ifndef NO_RAISE
        now.behind[c] = 0;
        now.upto[c] = 0;
        RaiseFence(c);
        return 1;
#endif
    }
    m = OtherKeys(now.fence[c] ? now.upto[c] & HeldNow(c) : HeldNow(c), now.behind[c]);
    if (now.behind[c] == 0) now.upto[c] = 0;
    return LetPass(c, m);
}

/* Whether something from the new side is held for its key alone. */
int HeldForItsKey(int c, int m) { return OtherKeys(1 << m, now.behind[c]) == 0; }
#endif

/* FenceDecision::kOpenUnasked: a side that was left is not asked for ever. The time is abstracted: it may be
 * over whenever the broker does not answer. */
int MayOpenUnasked(int c) {
#if defined(ORDER) && defined(SILENT)
    if (!now.fence[c] || At(c, OLD)) return 0;
#ifdef KEEPS_ASKED /* one question may always go unanswered */
    if (now.gave_up[c]) return 1;
#endif
    return now.silent;
#endif
    return 0;
}

int OpenUnasked(int c) {
#if defined(ORDER) && defined(SILENT)
    int m, later;
    for (m = 0; m < MSGS && now.silent; ++m) {
        if (!Lies(m, OLD) || Has(c, m) == NONE || Has(c, m) == DONE) continue;
        for (later = m + 1; later < (m / N + 1) * N; ++later) {
            if (Has(c, later) == StateAt(c, HELD) || Has(c, later) == StateAt(c, MARKED)) {
                now.excused[GroupOf(c)] |= 1 << m;
            }
        }
    }
#ifdef KEEPS_ASKED
    now.gave_up[c] = 1;
#endif
    return Open(c);
#endif
    return 1;
}

/* The message of producer p that the broker would give to member c on that side. */
int Takeable(int c, int side, int p) {
    const uchar* const states = &now.in_group[GroupOf(c) * MSGS];
    int m, first = -1;
    if (!At(c, side) || (side == OLD && now.off)) return -1;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (!Lies(m, side)) continue;
        if (states[m] == READY && first < 0) first = m;
#ifdef ORDER
        if (Unsettled(states[m]) && !IsOf(states[m], c)) return -1;
#endif
    }
    return first;
}

int Take(int c, int side, int m) {
    int held = 0;
#ifdef NEWER
    now.took[c] |= 1 << m;
#endif
#ifdef ORDER
    if (side == NEW) {
        NoteMove(c, m);
        held = now.fence[c];
#ifdef KEYS
        held |= HeldForItsKey(c, m);
#endif
    }
#ifdef OLD_FENCES
    if (side == OLD) {
        NoteMove(c, m);
        held = now.fence_old[c];
    }
#endif
#endif
    Printf("member %d takes message %d from side %d%s\n", c, m, side, held ? " and holds it" : "");
    if (!held) return Admit(c, m);
    Has(c, m) = StateAt(c, HELD);
    return 1;
}

/* Whether the handler of that message, if there is one, returns: not while it waits in Client::SendMsg, and not
 * the one that always fails. */
int MayReturn(int m) {
    if (m < 0) return 0;
#ifdef POISON
    if (m == POISON) return 0;
#endif
#if defined(HANDLER_SENDS) && !defined(OTHER_TOPIC)
    if (m % N == 0) return now.answer[m / N] && IsConfirmed(now.answer[m / N] - 1);
#endif
    return 1;
}

/* The handler of a producer's first message sends one more itself, by the same client; or one of another topic
 * does, at any time. */
int HandlerMaySend(int c, int p) {
#ifdef HANDLER_SENDS
    if (now.answer[p] || NextUnsent(p) < 0) return 0;
#ifndef OTHER_TOPIC
    if (Head(c, p) != p * N) return 0;
#endif
#ifndef NO_PASS
    if (now.moving[p] && GoesBack(p, Other(now.route[p]))) return 1;
#endif
    return !now.moving[p];
#else
    return 0;
#endif
}

void HandlerSends(int p) {
#ifdef HANDLER_SENDS
    const int m = NextUnsent(p);
    Printf("the handler sends\n");
    now.answer[p] = 1 + m;
    Send(p, now.route[p]);
#ifndef NO_LAST_LOOK
    now.proved[p] = 0;
#endif
#if defined(POSITIONS) && !defined(NO_ASK_AGAIN)
    now.asked[p] = 0;
    now.left[p] = 0;
#endif
#endif
}

/* A message that a group has settled keeps nobody waiting. */
void Forget(int m) {
#ifdef ORDER
    int x, settled = 1, settled_where_asked = 1;
    for (x = 0; x < MEMBERS; ++x) {
        if (Has(x, m) != DONE) {
            settled = 0;
            if (GroupOf(x) < ASKED) settled_where_asked = 0;
            continue;
        }
#ifdef POSITIONS
        now.before[x] &= ~(1 << m);
#endif
    }
#ifdef POSITIONS
    for (x = 0; x < P && settled_where_asked; ++x) now.left[x] &= ~(1 << m);
#endif
    if (!settled) return;
    now.unclean_of[m] = 0;
    now.ups_of[m] = 0;
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
    in_order |= Excused(c, m);
#if defined(SILENT) || defined(OLD_FENCES)
    now.excused[GroupOf(c)] &= ~(1 << m);
#endif
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
        if (Lies(m, side) && IsOf(*state, c)) *state = READY;
    }
    At(c, side) = 0;
}

/* Walk::LookBack: a member at rest looks once in a while at the side that it has left, and Walk::TendFence
 * asks the broker of the side that a fence waits for; what is there brings the member back. */
int SeesLateArrivals(int c, int side) {
    if (At(c, side) || !Answers(side) || Drained(c, side) || (side == OLD && now.off)) return 0;
#ifdef ORDER
    if (side == OLD && now.fence[c]) return 1;
#ifdef OLD_FENCES
    if (side == NEW && now.fence_old[c]) return 1;
#endif
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
#ifdef OLD_FENCES
    now.fence_old[c] = 0;
    now.seen_old[c] = 0;
#ifdef NEWER
    now.took[c] = 0;
#endif
#endif
#endif
    now.stage[c] = now.flag[c];
    for (side = OLD; side <= NEW; ++side) {
        At(c, side) = 0;
        if (Subscribes(now.stage[c], side)) Attach(c, side);
    }
    Printf("member %d is killed, and starts again at rung %d\n", c, now.stage[c]);
}

int StepsPublish(int c) { return StepPublishes(c) && EverybodyListens(PublishSide(NextRung(c)), NAMED); }

void RestartProducer(int p) {
    now.stage[MEMBERS + p] = now.flag[MEMBERS + p];
    now.route[p] = PublishSide(now.stage[MEMBERS + p]);
    GoOn(p);
#ifdef ORDER
    now.unclean[p] = 0;
    now.ups[p] = 0;
#ifdef OLD_FENCES
    now.downs[p] = 0;
#endif
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

/* What is on the wire is lost with its producer, but for what a broker has taken already. */
void LoseWire(int p) {
    int m;
    for (m = p * N; m < (p + 1) * N; ++m) {
        if (now.sent[m] != WIRE + OLD && now.sent[m] != WIRE + NEW) continue;
        now.sent[m] = Lies(m, SideOf(m)) ? CONFIRMED + SideOf(m) : LOST;
    }
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
    if (now.stopped || rung < 0 || rung > TO) return 0;
#ifdef UP
    if (rung < now.flag[x]) return 0;
#endif
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
#ifdef POISON
        if (m / N == POISON / N) continue;
#endif
        if (now.sent[m] == LOST) continue;
        if (!IsConfirmed(m)) return 0;
        for (g = 0; g < G; ++g) {
            if (now.in_group[g * MSGS + m] != DONE) return 0;
        }
    }
#ifndef POISON
    for (x = 0; x < MEMBERS; ++x) {
#ifdef ORDER
        if (now.fence[x]) return 0;
#ifdef OLD_FENCES
        if (now.fence_old[x]) return 0;
#endif
#endif
#ifndef JUMP
        if (now.stage[x] != now.flag[x]) return 0;
#endif
    }
#if !defined(FREE) && !defined(JUMP)
    for (x = MEMBERS; x < SERVICES; ++x) {
        if (now.stage[x] != now.flag[x]) return 0;
    }
#endif
#endif
    return 1;
}

int AConfirmedOneWaits(void) {
    int m, g;
    for (m = 0; m < MSGS; ++m) {
        for (g = 0; g < G && IsConfirmed(m); ++g) {
            if (now.in_group[g * MSGS + m] != DONE) return 1;
        }
    }
    return 0;
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
#define TOLD(does, x, change) \
    :: d_step { c_expr { (does(WALKS) && MayFlip(x, now.flag[x] change)) } -> \
        c_code { Flip(x, now.flag[x] change); } }

proctype Producer(byte p; byte roles) {
    byte x = MEMBERS + p;
end: do
    TOLD(P_DOES, PProducer->x, + 1)
    TOLD(P_DOES, PProducer->x, - 1)

    /* Router::Send: the route is read once more when the send has been counted in. */
#ifndef NO_ROUTE_CHECK
    :: d_step { c_expr { (P_DOES(SENDS) && MaySend(PProducer->p)) } ->
        c_code { Send(PProducer->p, now.route[PProducer->p]); } }
#else
    :: d_step { c_expr { (P_DOES(SENDS) && MaySend(PProducer->p) &&
                         !now.read[PProducer->p]) } ->
        read[p] = 1 + route[p]; printf("producer %d reads that it sends to side %d\n", p, route[p]) }
    :: d_step { c_expr { (P_DOES(SENDS) && now.read[PProducer->p] != 0) } ->
        c_code { Send(PProducer->p, now.read[PProducer->p] - 1); } }
#endif

#define ACCEPT(side) \
    :: d_step { c_expr { (P_DOES(CONFIRMS) && NextOnWire(PProducer->p, side) >= 0 && !(side == OLD && now.off)) } -> \
        c_code { now.ok = Accept(NextOnWire(PProducer->p, side), side); }; \
        assert(ok) /* a confirmed message that a group never gets */ }
    EACH_SIDE(ACCEPT)
#ifdef RELOAD
#define ACCEPT_SECOND(side) \
    :: d_step { c_expr { (P_DOES(CONFIRMS) && NextOnSecondRoute(PProducer->p, side) >= 0) } -> \
        c_code { now.ok = Accept(NextOnSecondRoute(PProducer->p, side), side); }; assert(ok) }
    EACH_SIDE(ACCEPT_SECOND)
    :: d_step { c_expr { (P_DOES(WALKS) && !now.stopped && !now.reloaded[PProducer->p]) } ->
        c_code { now.reloaded[PProducer->p] = 1; };
        printf("producer %d reads its config again\n", p) }
#endif
#ifdef LOST_CONFIRMS
#define LOSE_CONFIRM(side) \
    :: d_step { c_expr { (P_DOES(CONFIRMS) && !now.stopped && NextToLose(PProducer->p, side) >= 0) } -> \
        c_code { now.ok = LoseConfirm(NextToLose(PProducer->p, side), side); }; assert(ok) }
    EACH_SIDE(LOSE_CONFIRM)
#endif
#ifdef TIMES_OUT
#define TIME_OUT(side) \
    :: d_step { c_expr { (P_DOES(CONFIRMS) && InFlight(PProducer->p, side)) } -> \
        c_code { now.failed |= 1 << NextOnWire(PProducer->p, side); }; \
        printf("producer %d gives a send up\n", p) }
    EACH_SIDE(TIME_OUT)
#endif

    /* Walk::TrySubscribe and Walk::TryLeave without a subscription */
    :: d_step { c_expr { (P_DOES(WALKS) && now.flag[PProducer->x] != now.stage[PProducer->x] &&
                         !StepPublishes(PProducer->x) &&
                         !(StepLeaves(PProducer->x, OLD) && InFlight(PProducer->p, OLD)) &&
                         !(StepLeaves(PProducer->x, NEW) && InFlight(PProducer->p, NEW))) } ->
        c_code { now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d reaches rung %d\n", p, stage[x]) }

    /* Walk::TryPublish: the guard, then the sender's fence, and Walk::LeavesNothing for those that return */
    :: d_step { c_expr { (P_DOES(WALKS) && !now.moving[PProducer->p] &&
                         now.flag[PProducer->x] != now.stage[PProducer->x] &&
                         StepPublishes(PProducer->x) && MayHold(PProducer->p)) } ->
        c_code { now.moving[PProducer->p] = 1; };
        printf("producer %d holds its sends to move\n", p) }
    :: d_step { c_expr { (P_DOES(WALKS) && now.moving[PProducer->p] && StepPublishes(PProducer->x) &&
                         MayMove(PProducer->p)) } ->
        c_code { Move(PProducer->p);
                 now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d publishes to side %d at rung %d\n", p, route[p], stage[x]) }
#ifdef UNPROVED
    :: d_step { c_expr { (P_DOES(WALKS) && StepPublishes(PProducer->x) && MayMoveUnproved(PProducer->p)) } ->
        c_code { MoveUnproved(PProducer->p);
                 now.stage[PProducer->x] = NextRung(PProducer->x); };
        printf("producer %d goes back to side %d at rung %d without proof\n", p, route[p], stage[x]) }
#endif
    :: d_step { c_expr { (P_DOES(WALKS) && MayAsk(PProducer->p)) } ->
        c_code { Ask(PProducer->p); };
        printf("producer %d asks what is left on side %d\n", p, route[p]) }
#if defined(ORDER) && defined(HANDLER_SENDS)
    :: d_step { c_expr { (P_DOES(WALKS) && now.moving[PProducer->p] && !now.proved[PProducer->p] &&
                         StepPublishes(PProducer->x) && GoesBack(PProducer->p, Other(now.route[PProducer->p])) &&
                         MayProve(PProducer->p)) } ->
        c_code { now.proved[PProducer->p] = 1; };
        printf("producer %d knows that nothing is left\n", p) }
#endif
#ifndef NO_CALL_OFF
    /* Walk::CallOffMove */
    :: d_step { c_expr { (P_DOES(WALKS) && now.moving[PProducer->p] && !StepPublishes(PProducer->x)) } ->
        c_code { GoOn(PProducer->p); };
        printf("producer %d calls its move off\n", p) }
#endif
    /* Walk::GoOnPublishing: sends are not held for long; when flags change no more, for as long as it takes */
    :: d_step { c_expr { (P_DOES(WALKS) && MayGiveUp(PProducer->p)) } ->
        c_code { GoOn(PProducer->p); };
        printf("producer %d goes on where it is for the time being\n", p) }

#ifdef CRASH_P
    /* Killed, and started again: what is on the wire arrives, or never does. */
#define LOSE(side) \
    :: d_step { c_expr { (!now.stopped && NextOnWire(PProducer->p, side) >= 0) } -> \
        c_code { LoseWire(PProducer->p); RestartProducer(PProducer->p); }; \
        }
    EACH_SIDE(LOSE)
    :: d_step { c_expr { (!now.stopped && !InFlight(PProducer->p, OLD) && !InFlight(PProducer->p, NEW)) } ->
        c_code { RestartProducer(PProducer->p); };
        }
#endif
    od
}

proctype Member(byte c; byte roles) {
end: do
    TOLD(M_DOES, PMember->c, + 1)
    TOLD(M_DOES, PMember->c, - 1)

    /* SideReceiver::OnDelivery, Dispatcher::Offer */
#define TAKE_OLD(p) TAKE(OLD, p)
#define TAKE_NEW(p) TAKE(NEW, p)
#define TAKE(side, p) \
    :: d_step { c_expr { (M_DOES(RECEIVES) && Takeable(PMember->c, side, p) >= 0) } -> \
        c_code { now.ok = Take(PMember->c, side, Takeable(PMember->c, side, p)); }; \
        assert(ok) /* order: a later message of the key is in the lane */ }
    EACH_PRODUCER(TAKE_OLD)
    EACH_PRODUCER(TAKE_NEW)

    /* Dispatcher::Run, Item::Ack */
#define HANDLE(p) \
    :: d_step { c_expr { (M_DOES(HANDLES) && MayReturn(Head(PMember->c, p))) } -> \
        c_code { now.ok = Handle(PMember->c, Head(PMember->c, p)); }; \
        assert(ok) /* order: a later message of the key was handled before */ }
    EACH_PRODUCER(HANDLE)

#ifdef HANDLER_SENDS
    /* Router::Send of a handler: it passes a hold that waits for handlers. */
#define ANSWER(p) \
    :: d_step { c_expr { (M_DOES(HANDLES) && HandlerMaySend(PMember->c, p)) } -> \
        c_code { HandlerSends(p); } }
    EACH_PRODUCER(ANSWER)
#endif

#ifdef ORDER
    /* Walk::TendFence */
    :: d_step { c_expr { (M_DOES(TENDS) && MayTakePosition(PMember->c)) } ->
        c_code { TakePosition(PMember->c); };
        printf("member %d asks what is left on side 0\n", c) }
    :: d_step { c_expr { (M_DOES(TENDS) && MayOpen(PMember->c)) } ->
        c_code { now.ok = OpenInOrder(PMember->c); };
        printf("member %d opens its fence, or moves it\n", c); assert(ok) }
#ifdef OLD_FENCES
    :: d_step { c_expr { (M_DOES(TENDS) && now.fence_old[PMember->c] && Drained(PMember->c, NEW)) } ->
        c_code { now.ok = OpenOld(PMember->c); };
        printf("member %d opens its fence on side 0\n", c); assert(ok) }
#ifdef NEWER
    :: d_step { c_expr { (M_DOES(TENDS) && WaitsForNewer(PMember->c)) } ->
        c_code { now.ok = OpenOld(PMember->c); };
        printf("member %d opens its fence on side 0, which waits for what came later\n", c); assert(ok) }
#endif
    :: d_step { c_expr { (M_DOES(TENDS) && WaitsInVain(PMember->c)) } ->
        c_code { now.ok = OpenInVain(PMember->c); };
        printf("member %d opens its fence on side 0, which waits in vain\n", c); assert(ok) }
#endif
#ifdef SILENT
    :: d_step { c_expr { (M_DOES(TENDS) && MayOpenUnasked(PMember->c)) } ->
        c_code { now.ok = OpenUnasked(PMember->c); };
        printf("member %d opens its fence without an answer\n", c); assert(ok) }
#endif
#ifdef LISTS
    :: d_step { c_expr { (M_DOES(TENDS) && MayAskForList(PMember->c)) } -> c_code { AskForList(PMember->c); } }
#define GIVE_BACK(p) \
    :: d_step { c_expr { (MayReturnToOld(PMember->c, p)) } -> c_code { GiveBack(PMember->c, p); } }
    EACH_PRODUCER(GIVE_BACK)
#endif
#ifdef KEYS
    :: d_step { c_expr { (M_DOES(TENDS) && MayLook(PMember->c)) } ->
        c_code { Look(PMember->c); };
        printf("member %d looks at what it has from side 0\n", c) }
    :: d_step { c_expr { (M_DOES(TENDS) && MayAskHowMany(PMember->c)) } ->
        c_code { AskHowMany(PMember->c); };
        printf("member %d asks how many are left on side 0: %d\n", c, counted[c]) }
    :: d_step { c_expr { (M_DOES(TENDS) && now.looking[PMember->c] == 2) } ->
        c_code { now.ok = LetOthersPass(PMember->c); };
        printf("member %d lets other keys pass, where all that is left is its own\n", c); assert(ok) }
    :: d_step { c_expr { (M_DOES(TENDS) && MayTendNarrow(PMember->c)) } ->
        c_code { now.ok = TendNarrow(PMember->c); };
        printf("member %d sees what has become of what its keys wait for\n", c); assert(ok) }
#endif
#endif

    /* Walk::TrySubscribe */
#define SUBSCRIBE(side) \
    :: d_step { c_expr { (M_DOES(WALKS) && StepSubscribes(PMember->c, side) && !At(PMember->c, side)) } -> \
        c_code { Attach(PMember->c, side); }; \
        printf("member %d subscribes to side %d\n", c, side) } \
    :: d_step { c_expr { (M_DOES(WALKS) && StepSubscribes(PMember->c, side) && At(PMember->c, side)) } -> \
        c_code { now.stage[PMember->c] = NextRung(PMember->c); }; \
        printf("member %d reaches rung %d\n", c, stage[c]) }
    EACH_SIDE(SUBSCRIBE)

    /* Walk::TryPublish, in a service that does not publish */
    :: d_step { c_expr { (M_DOES(WALKS) && StepsPublish(PMember->c)) } ->
        c_code { now.stage[PMember->c] = NextRung(PMember->c); };
        printf("member %d reaches rung %d\n", c, stage[c]) }

    /* Walk::TryLeave, Walk::Leave */
#define LEAVE(side) \
    :: d_step { c_expr { (M_DOES(WALKS) && WantsToLeave(PMember->c, side) && MayLeave(PMember->c, side)) } -> \
        c_code { Leave(PMember->c, side); \
                 now.stage[PMember->c] = NextRung(PMember->c); }; \
        printf("member %d leaves side %d\n", c, side) }
    EACH_SIDE(LEAVE)

    /* Walk::Rejoin */
#define RESUBSCRIBE(side) \
    :: d_step { c_expr { (M_DOES(WALKS) && SeesLateArrivals(PMember->c, side)) } -> \
        c_code { Attach(PMember->c, side); }; \
        printf("member %d comes back to side %d\n", c, side) }
    EACH_SIDE(RESUBSCRIBE)

#ifdef CRASH_M
    :: d_step { !stopped -> c_code { RestartMember(PMember->c); } }
#endif
    od
}

#ifdef RESTARTS
proctype Brokers() {
end: do
#define RESTART(side) \
    :: d_step { c_expr { (!now.stopped && HasUnsettled(side)) } -> c_code { RestartBroker(side); } }
    EACH_SIDE(RESTART)
    od
}
#endif

#ifdef SILENT
proctype OldBroker() {
end: do
    :: d_step { !silent && !stopped -> silent = 1; printf("the old broker answers nothing\n") }
    :: d_step { silent -> silent = 0; printf("the old broker answers again\n") }
    od
}
#endif

proctype Operator() {
    do
    :: stopped -> break
    :: atomic { !stopped -> stopped = 1; printf("no flag changes any more\n"); break }
#if !defined(FREE) && !defined(JUMP) && !defined(UP)
    :: d_step { c_expr { (Settled()) } -> down = 1 - down; printf("the operator turns round\n") }
#endif
#ifdef OFF
    :: d_step { c_expr { (AllAtNew()) } -> stopped = 1; off = 1;
        printf("the operator switches the old broker off\n") }
#endif
    od;
#ifndef LIVENESS
    timeout ->
    c_code { now.ok = AllIsWell(); };
    assert(ok) /* something confirmed is left, or something waits for ever */
#endif
}

#ifdef LIVENESS
/* The opposite of what is promised: flags change no more, and it is never well. With RESTLESS, flags may change for
 * ever, and a confirmed message is never handled by some group. */
#ifdef RESTLESS
#define BAD (AConfirmedOneWaits())
#else
#define BAD (now.stopped && !AllIsWell())
#endif
never {
    do
    :: true
    :: c_expr { BAD } -> break
    od;
accept:
    do
    :: c_expr { BAD }
    od
}
#endif

init {
    byte i;
    atomic {
        for (i : 0 .. MEMBERS - 1) {
            flag[i] = MEMBERS_FROM;
            stage[i] = MEMBERS_FROM;
            attached[2 * i + OLD] = 1;
            declared[2 * (i / M) + OLD] = 1;
            if
            :: MEMBERS_FROM > 0 -> attached[2 * i + NEW] = 1; declared[2 * (i / M) + NEW] = 1
            :: else
            fi;
#ifdef LIVENESS
            run Member(i, RECEIVES); run Member(i, HANDLES); run Member(i, WALKS); run Member(i, TENDS)
#else
            run Member(i, ALL)
#endif
        }
        for (i : 0 .. P - 1) {
            flag[MEMBERS + i] = FROM;
            stage[MEMBERS + i] = FROM;
#ifdef LIVENESS
            run Producer(i, SENDS); run Producer(i, CONFIRMS); run Producer(i, WALKS)
#else
            run Producer(i, ALL)
#endif
        }
        i = 0;
#ifdef RESTARTS
        run Brokers();
#endif
#ifdef SILENT
        run OldBroker();
#endif
        run Operator()
    }
}
